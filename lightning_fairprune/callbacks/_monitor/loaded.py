"""Of which training step the weights are that a stage other than the fit has loaded, and where that is filed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightning_fairprune.records.recall_history import Evaluation, RecallHistory


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

    With `in_order`, those of loaded weights, a validation is put at its step, so that the last one stays that of the
    end of the fit; the last test is the one that was run last. What is known already, of the same weights with the
    same counts, is not repeated.
    """
    if not in_order:
        return (*known, *new)
    found = list(known)
    for one in new:
        same = [i for i, other in enumerate(found) if row_of(other) == row_of(one)]
        is_test = one.name.split("/")[0] == "test"
        if same and not is_test:
            continue
        if same:
            del found[same[0]]
        later = (i for i, other in enumerate(found) if not is_test and other.step > one.step)
        found.insert(next(later, len(found)), one)
    return tuple(found)


def with_what_follows(
    history: RecallHistory, folder: Path, own: tuple[Evaluation, ...], new: tuple[Evaluation, ...]
) -> RecallHistory:
    """Returns the record in a folder with `new` evaluations of loaded weights, if it holds all of `own`.

    A checkpoint has the evaluations until it was written, `own`. Where a new Trainer evaluates it with the logger of
    the fit, the record of the fit has those after it as well, which must stay. Else the history itself.
    """
    try:
        there = RecallHistory.load(folder)
        known = [*map(row_of, there.evaluations)]
        if not all(row_of(one) in known for one in own):
            return history
        return replace(
            there,
            evaluations=filed(there.evaluations, new, in_order=True),
            class_names=history.class_names or there.class_names,
            group_names=history.group_names or there.group_names,
            reference={**there.reference, **history.reference},
        )
    except (FileNotFoundError, ValueError):  # of other classes
        return history


def row_of(one: Evaluation) -> tuple[Any, ...]:
    """Returns an evaluation as values that can be compared."""
    return (*one[:4], one.counts.tp.tolist(), one.counts.support.tolist())
