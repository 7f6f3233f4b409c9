"""Commands for simulations and attacks."""
