"""Privacy mechanisms, one class each, behind one contract."""
