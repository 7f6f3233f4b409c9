"""Description of a model for people who get it."""
