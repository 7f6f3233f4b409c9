"""Membership inference on the final model, with and without privacy."""
