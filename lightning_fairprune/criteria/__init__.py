"""Weight saliency: how much each weight of a network matters, and so which ones to prune.

Every criterion returns {parameter name: saliency}, higher = keep, of the shape and on the device of the weight, float32
(float64 for float64 weights), and leaves the model and the random states exactly as they were.
"""

from __future__ import annotations

from lightning_fairprune.criteria._data_free import magnitude, random
from lightning_fairprune.criteria._fairgrape import fairgrape_masks, group_importance
from lightning_fairprune.criteria._fairprune import fairprune
from lightning_fairprune.criteria._first_order import gradient, snip, undecayed, weight_decay_of
from lightning_fairprune.criteria._parameters import prunable
from lightning_fairprune.criteria._synflow import synflow, synflow_masks

__all__ = [
    "fairgrape_masks",
    "fairprune",
    "gradient",
    "group_importance",
    "magnitude",
    "prunable",
    "random",
    "snip",
    "synflow",
    "synflow_masks",
    "undecayed",
    "weight_decay_of",
]
