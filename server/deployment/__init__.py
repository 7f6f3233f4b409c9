"""A federation of real clients: the server's folder, its certificates, who may join, and what strangers may ask."""
