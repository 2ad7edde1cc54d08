"""Corpora; one file each."""
