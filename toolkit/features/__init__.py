"""What a backbone reads: audio decoding, registered pipelines, the cache, batches."""
