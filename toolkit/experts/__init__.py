"""What an expert is: bottleneck, conformer and convpass adapters, evaluated in batches."""
