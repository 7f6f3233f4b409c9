"""State of a client for its holder."""
