"""Figures of what pruning did to the classes, each for a desktop page or, with `narrow`, for a phone.

All return a `matplotlib.figure.Figure` and leave the settings and figures of `matplotlib.pyplot` alone.
"""

from __future__ import annotations

from lightning_fairprune.figures._recalls import recall_by_class

__all__ = ["recall_by_class"]
