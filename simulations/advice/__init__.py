"""Ranking of mechanisms, aggregations and rounds on synthetic features."""
