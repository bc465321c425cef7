"""Numbers and names in, a calibrated probability and its explanation out. Knows no image."""
