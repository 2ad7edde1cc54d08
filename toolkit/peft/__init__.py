"""Ways to adapt a frozen backbone; one file a method."""
