"""Each projection, from events alone."""
