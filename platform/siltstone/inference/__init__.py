"""Continuous batching over users: prefill, decode and absorb on one core."""
