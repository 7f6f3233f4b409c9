"""The two sides of secure aggregation as states that take messages."""
