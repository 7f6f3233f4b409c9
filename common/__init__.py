"""What both sides of a federation agree on; imports neither server nor client."""
