"""Image sources, their partition over clients and their preparation for models."""
