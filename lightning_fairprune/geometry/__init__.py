"""Scores and orders from where the samples lie: features [N, D] -> centres, or one number per sample.

Features are any finite floating point tensor, such as the input of a network's last layer (`features_of`); NaN and
infinity raise a ValueError, as do shapes that do not fit; other dtypes raise a TypeError. Computed on the device of the
features, which must have float64 (MPS has not). Scores are [N], higher = harder: farther from the other samples or from
a centre.
"""

from __future__ import annotations

from lightning_fairprune.geometry._centroids import k_means_distance, prototype_distance
from lightning_fairprune.geometry._features import features_of
from lightning_fairprune.geometry._k_center import class_k_center, k_center, k_center_distance
from lightning_fairprune.geometry._neighbours import neighbour_distance

__all__ = [
    "class_k_center",
    "features_of",
    "k_center",
    "k_center_distance",
    "k_means_distance",
    "neighbour_distance",
    "prototype_distance",
]
