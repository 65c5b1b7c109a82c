"""Train on less data, or with fewer weights, without the worst class paying for it."""

__version__ = "0.1.0.dev0"
