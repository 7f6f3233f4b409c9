"""The round: configure, send, aggregate, record."""
