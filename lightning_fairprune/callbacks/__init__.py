"""Trainer callbacks: they decide *when*; the functions they call know *what*."""
