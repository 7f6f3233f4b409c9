"""Simulations of federations on one machine and attacks on them."""
