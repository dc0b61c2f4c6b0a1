"""Siltstone: one language model that keeps learning from each of the people it serves."""
