"""The arguments of DataPruning as text and numbers, for people who read of a run later."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from lightning_fairprune.callbacks._score_pass import ScorePass

if TYPE_CHECKING:
    from lightning_fairprune.callbacks.data_pruning import DataPruning


def settings_of(callback: DataPruning) -> dict[str, Any]:
    """Returns what the fit was asked for."""
    return {
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
