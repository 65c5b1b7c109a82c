"""The arguments of WeightPruning as text and numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning_fairprune.records.settings import name_of

if TYPE_CHECKING:
    from lightning_fairprune.callbacks.weight_pruning import WeightPruning

__all__ = ["settings_of"]


def settings_of(callback: WeightPruning) -> dict[str, Any]:
    """Returns what the fit was asked for."""
    return {
        "criterion": name_of(callback.criterion),
        "criterion_options": [f"{k}={v!r}" for k, v in callback.criterion_options.items()],
        "sparsity": callback.sparsity,
        "schedule": name_of(callback.schedule),
        "start": callback.start,
        "end": callback.end,
        "every": callback.every,
        "interval": callback.interval,
        "scope": name_of(callback.scope),
        "include": callback.include,
        "exclude": callback.exclude,
        "keep_classifier": callback.keep_classifier,
        "floor": callback.floor,
        "num_batches": callback.num_batches,
        "group_by": name_of(callback.group_by),
        "rewind": callback.rewind,
        "seed": callback.seed,
    }
