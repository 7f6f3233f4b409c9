"""Review of a code bundle before its digest is pinned."""
