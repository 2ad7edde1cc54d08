"""Tools and views on trained mixtures: compress them, prune them, draw them."""
