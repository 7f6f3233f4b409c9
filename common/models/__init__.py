"""Backbones by name, heads, and the saved model bundle."""
