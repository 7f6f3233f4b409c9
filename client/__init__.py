"""The client, from a server's message to its reply."""
