"""A real client under controlled data and randomness."""
