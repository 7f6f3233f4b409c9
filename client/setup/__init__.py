"""Creation of a client's folder, key and trust in the server."""
