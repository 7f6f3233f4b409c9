"""Noise of counts and its plan."""
