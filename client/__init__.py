"""One client's work: decode, train, encode."""
