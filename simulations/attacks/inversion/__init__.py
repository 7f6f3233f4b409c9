"""Reconstruction of an image from one update, with and without privacy."""
