"""Inputs that models are trained on, from scaled images to their store."""
