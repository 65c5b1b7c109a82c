"""Records of a run, written during it and read later."""
