"""Mixture mathematics on tensors: gates and batched experts; knows nothing of audio."""
