"""Rounds of a federation, from the enrollment of clients to the closing evaluation."""
