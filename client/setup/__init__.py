"""Creation of a client folder, its node key and its trust in the server."""
