"""Ten classes of everyday sounds that the program makes itself, in ESC-50's layout."""
