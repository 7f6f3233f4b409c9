"""The state of a client for `bract client status`."""
