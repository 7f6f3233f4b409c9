"""Commands of a federation's operator."""
