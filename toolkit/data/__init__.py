"""Corpora and their splits, sampling of batches, augmentation."""
