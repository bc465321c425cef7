"""Networks whose code we own, and how weights are checked and loaded."""
