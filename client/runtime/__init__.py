"""A client on Flower's deployment runtime: a SuperNode, and a launcher that runs pinned code only."""
