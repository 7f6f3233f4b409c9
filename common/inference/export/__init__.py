"""Conversion of a trained model to files that other programs run."""
