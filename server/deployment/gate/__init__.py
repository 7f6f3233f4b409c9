"""Memory of the gate in front of the server."""
