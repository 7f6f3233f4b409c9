"""Attacks on our own guarantee: layers that replay, measure and try to break it."""
