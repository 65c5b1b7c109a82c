"""The arguments of DataPruning as text and numbers, for people who read of a run later."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_fairprune.callbacks._data.score_pass import ScorePass

if TYPE_CHECKING:
    from lightning_fairprune.callbacks.data_pruning import DataPruning
from lightning_fairprune.callbacks._arguments import check_same
from lightning_fairprune.records.settings import name_of


def settings_of(callback: DataPruning) -> dict[str, Any]:
    """Returns what the fit was asked for, without numbers of numpy, which a checkpoint must not hold."""
    settings = {
        "density": callback.density,
        "warmup_epochs": callback.warmup_epochs,
        "score": name_of(callback.score),
        "score_on": "pass" if callback.score_on == ScorePass() else name_of(callback.score_on),
        "quota": name_of(callback.quota_fn),
        "keep": callback.keep,
        "after": callback.after,
        "resample_every": callback.resample_every,
        "update_every": callback.update_every,
        "recall_window": callback.recall_window,
        "shrinkage": callback.shrinkage,
        "floor": callback.floor,
        "group_by": name_of(callback.group_by),
        "seed": callback.seed,
    }
    return {k: v.item() if isinstance(v, np.generic) else v for k, v in settings.items()}


# What decides which samples stay; how often quotas follow may change on the way.
_FIXED = (
    "density",
    "warmup_epochs",
    "score",
    "score_on",
    "quota",
    "keep",
    "after",
    "floor",
    "group_by",
    "seed",
)


def check_resumed(callback: DataPruning, before: Mapping[str, Any]) -> None:
    """Raises unless a fit that is resumed with these arguments keeps the samples it would have kept."""
    now = settings_of(callback)
    # An object that is written with its address is another one in each process.
    names = [name for name in _FIXED if " at 0x" not in f"{before.get(name)} {now[name]}"]
    check_same("DataPruning", {name: now[name] for name in names}, before)
