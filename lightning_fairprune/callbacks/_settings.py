"""The arguments of DataPruning as text and numbers, for people who read of a run later."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_fairprune.callbacks._score_pass import ScorePass

if TYPE_CHECKING:
    from lightning_fairprune.callbacks.data_pruning import DataPruning


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


def check_same(owner: str, now: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    """Raises a ValueError that names the arguments that a fit did not begin with.

    Args:
        owner: the callback whose arguments they are.
        now: arguments to compare.
        before: those of the checkpoint; what it does not know is not compared.
    """
    changed = [name for name in now if name in before and now[name] != before[name]]
    if changed:
        raise ValueError(
            f"a resumed fit must go on with the arguments it began with, but {owner} has "
            + ", ".join(f"`{name}`={now[name]!r}" for name in changed)
            + " where the checkpoint has "
            + ", ".join(repr(before[name]) for name in changed)
            + ": give the same, or begin a new fit from the weights of the checkpoint."
        )


def name_of(value: Any) -> str | int | None:
    """Returns how a person would write a function: ``drop``, ``drop(cap=[3, 4])``, ``Minimax()``."""
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, partial):
        given = [repr(x) for x in value.args] + [f"{k}={x!r}" for k, x in value.keywords.items()]
        return f"{name_of(value.func)}({', '.join(given)})"
    name = getattr(value, "__name__", None)
    if name is not None:
        return str(name)
    # The default repr of an object has its address, which differs from run to run.
    text = repr(value)
    return f"{type(value).__name__}()" if f" at {hex(id(value))}" in text else text
