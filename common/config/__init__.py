"""Typed settings, their defaults and how they are read."""
