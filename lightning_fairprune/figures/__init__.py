"""Figures of what pruning did to the classes, each for a desktop page or, with `narrow`, for a phone.

All return a `matplotlib.figure.Figure` and leave the settings and figures of `matplotlib.pyplot` alone.
"""

from lightning_fairprune.figures._intensification import intensification_scatter
from lightning_fairprune.figures._kept import density_against_recall, kept_by_class
from lightning_fairprune.figures._layers import layer_sparsity, similarity
from lightning_fairprune.figures._recalls import recall_by_class
from lightning_fairprune.figures._sparsity import sparsity_curve
from lightning_fairprune.figures._time import quotas_over_time, recalls_over_epochs

__all__ = [
    "density_against_recall",
    "intensification_scatter",
    "kept_by_class",
    "layer_sparsity",
    "quotas_over_time",
    "recall_by_class",
    "recalls_over_epochs",
    "similarity",
    "sparsity_curve",
]
