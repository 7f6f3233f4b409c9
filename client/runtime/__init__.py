"""The long-running process of a client on Flower's deployment runtime."""
