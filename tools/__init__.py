"""Programs for people who work on the toolkit itself; run from the root of a checkout."""
