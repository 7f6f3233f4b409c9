"""Secure aggregation by which a server sees the sum of its clients' words alone.

The protocol and its assumptions are in docs/secure-aggregation.md. Nothing here imports Flower or PyTorch, and nothing
here writes files or sends messages.
"""
