"""Canary attacks that compare trainings with and without one unit."""
