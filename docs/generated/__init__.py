"""The generated parts of the documentation, a file per page."""
