"""Faster passes through fewer tokens: patches dropped in training, tokens merged in every pass."""
