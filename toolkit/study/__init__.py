"""Studies: many runs of recipes, planned, executed, timed, compared and reported."""
