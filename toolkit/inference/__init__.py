"""Using what was learned: predictions and embeddings of files and arrays."""
