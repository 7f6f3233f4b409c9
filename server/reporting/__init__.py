"""Reports of a run for its users."""
