"""Answering: many users' answers decoded in one batch, each under a pinned state."""
