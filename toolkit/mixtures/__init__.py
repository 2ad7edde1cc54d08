"""What can be done to a trained mixture: compress it, prune it, look into it."""
