"""Using what was learned: predictions from files."""
