"""Commands for simulations, privacy tests and attacks."""
