"""Mathematics of mixtures on tensors: how tokens and experts find each other."""
