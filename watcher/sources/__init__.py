"""Where hints come from; sources do not know each other."""
