"""Image sources, one module each, behind one contract."""
