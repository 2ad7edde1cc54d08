"""Ways to adapt a frozen backbone; one file per method."""
