"""A user's network: lent, read and given back as it was."""
