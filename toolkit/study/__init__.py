"""Studies: many runs of the recipes, planned, executed, measured, compared and reported."""
