"""State of a client, as `bract client status` shows it."""
