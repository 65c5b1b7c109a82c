"""Figures of the effect of pruning on the classes, for a desktop page or, with `narrow`, for a phone.

All return a `matplotlib.figure.Figure`, raise an ImportError if matplotlib is missing, and change neither the
settings nor the figures of `matplotlib.pyplot`. `names` are those of the classes, None for their numbers.
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
