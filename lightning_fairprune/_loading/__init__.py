"""The training loader over the kept samples, in place of the user's."""
