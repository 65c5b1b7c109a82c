"""Of which training step the weights are that a stage other than the fit has loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lightning_fairprune.records.recall_history import Evaluation


@dataclass(frozen=True, slots=True)
class LoadedWeights:
    """Epochs begun and steps taken when a checkpoint was written, and whether pruning had begun."""

    epoch: int
    step: int
    pruned: bool

    @classmethod
    def of(cls, checkpoint: Mapping[str, Any]) -> LoadedWeights:
        """Reads a checkpoint of the Trainer."""
        try:
            epoch = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["ready"]
        except KeyError:  # of another version; its `epoch` is one less inside an epoch
            epoch = checkpoint["epoch"]
        states = checkpoint.get("callbacks", {})
        data, weights = states.get("DataPruning", {}), states.get("WeightPruning", {})
        pruned = data.get("selection") is not None or bool(weights.get("history"))
        return cls(int(epoch), int(checkpoint["global_step"]), pruned)


def filed(
    known: tuple[Evaluation, ...], new: tuple[Evaluation, ...], *, in_order: bool
) -> tuple[Evaluation, ...]:
    """Returns the evaluations with the new ones after them.

    With `in_order`, those of loaded weights, one of the same weights is replaced, and a validation is put at its step,
    so that the last one stays that of the end of the fit. The last test is the one that was run last.
    """
    if not in_order:
        return (*known, *new)
    same = {(one.name, one.epoch, one.step) for one in new}
    found = [one for one in known if (one.name, one.epoch, one.step) not in same]
    for one in new:
        is_test = one.name.split("/")[0] == "test"
        later = (i for i, other in enumerate(found) if not is_test and other.step > one.step)
        found.insert(next(later, len(found)), one)
    return tuple(found)
