"""Commands that need neither a server nor a client."""
