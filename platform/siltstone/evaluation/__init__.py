"""The tasks by which the model is judged."""
