"""Self-contained HTML pages of blocks, without a network."""
