"""Copies of a run's figures in the experiment trackers that a user has."""
