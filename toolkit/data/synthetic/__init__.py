"""Ten everyday classes of sound that the program makes itself, in ESC-50's own layout."""
