"""How many samples of each class to keep: (sizes, recall, budget) -> quota, int64 [K].

A rule that needs no recall takes (sizes, budget); `rcap` takes losses in place of recalls, `difficulty` the
difficulties that `class_difficulty` computes from a score. Every rule is a choice of weights; `apportion` turns
weights into integers that sum to the budget exactly, never exceed a class size (or ``repeat`` times it), and
never shrink for any class when the budget grows.
"""

from __future__ import annotations

from lightning_fairprune.quotas._apportion import apportion
from lightning_fairprune.quotas._difficulty import class_difficulty, difficulty, separability
from lightning_fairprune.quotas._minimax import Minimax
from lightning_fairprune.quotas._rules import (
    balanced,
    drop,
    drop_reference,
    of_subset,
    proportional,
    rcap,
)

__all__ = [
    "Minimax",
    "apportion",
    "balanced",
    "class_difficulty",
    "difficulty",
    "drop",
    "drop_reference",
    "of_subset",
    "proportional",
    "rcap",
    "separability",
]
