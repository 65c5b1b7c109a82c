"""What per-class recalls say about a model, alone or next to a reference: pure functions on recalls [..., K].

A class without support has recall NaN and is left out; dimensions before the last are a batch, one result
each. Nothing here waits for the device. Half precision is computed, and returned, as float32. With a
reference (the unpruned model, say), a class that is NaN in either recall is left out of both.
"""

from __future__ import annotations

from lightning_fairprune.recalls._alone import (
    balance,
    cvar,
    gap,
    normalised_balance,
    std,
    worst,
    worst_k,
    zero_recall,
)
from lightning_fairprune.recalls._compared import (
    adjusted_change,
    change,
    class_intensification,
    disparity,
    intensification,
    retention,
)
from lightning_fairprune.recalls._groups import groups

__all__ = [
    "adjusted_change",
    "balance",
    "change",
    "class_intensification",
    "cvar",
    "disparity",
    "gap",
    "groups",
    "intensification",
    "normalised_balance",
    "retention",
    "std",
    "worst",
    "worst_k",
    "zero_recall",
]
