"""Summaries of per-class recalls of a model, alone or relative to a reference: functions of recalls [..., K].

A class without support has recall NaN and is left out; leading dimensions are a batch. No function synchronises
the host with the device. Half precision is computed, and returned, as float32. With a reference (such as the
unpruned model), a class that is NaN in either recall is left out of both.
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
from lightning_fairprune.recalls._empirical_bayes import empirical_bayes
from lightning_fairprune.recalls._groups import groups

__all__ = [
    "adjusted_change",
    "balance",
    "change",
    "class_intensification",
    "cvar",
    "disparity",
    "empirical_bayes",
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
