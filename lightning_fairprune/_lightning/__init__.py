"""Lightning's two packages, and Lightning outside a fit."""
