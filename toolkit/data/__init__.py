"""From files to batches: corpora, audio, features, the cache, augmentation."""
