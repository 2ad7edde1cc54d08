"""Programs for developing the toolkit itself, run from the root of a checkout."""
