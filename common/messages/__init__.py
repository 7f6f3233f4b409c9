"""Messages between server and clients, and what they may carry."""
