"""Types, errors, settings, persistence and logs. Knows no other package of ours, but for the door image_io."""
