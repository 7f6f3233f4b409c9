"""Page on loopback that changes while its files change."""
