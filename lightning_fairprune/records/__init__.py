"""Records of a run: written while it runs, read later."""
