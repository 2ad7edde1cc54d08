"""Experts: bottleneck, conformer and convpass adapters, evaluated in batches."""
