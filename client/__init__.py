"""Work of one client of a federation."""
