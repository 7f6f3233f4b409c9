"""Attacks on our own guarantee."""
