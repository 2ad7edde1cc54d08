"""Reading the results of a study and writing its tables, plots and pages."""
