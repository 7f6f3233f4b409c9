"""Checks behind `bract client check`."""
