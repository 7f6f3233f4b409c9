"""Commands of a client's operator."""
