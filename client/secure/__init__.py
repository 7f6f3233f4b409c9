"""A client's part in secure sums."""
