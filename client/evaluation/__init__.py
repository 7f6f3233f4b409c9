"""Evaluation of the incoming model on held-out images."""
