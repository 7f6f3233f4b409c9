"""The commands that need neither a server nor a client."""
