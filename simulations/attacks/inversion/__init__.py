"""Rebuild an image from one update, with privacy and without."""
