"""Batched per-example gradients of a network."""
