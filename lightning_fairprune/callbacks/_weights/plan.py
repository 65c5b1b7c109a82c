"""When weights are pruned, and to which sparsity each time."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn

from lightning_fairprune.callbacks._arguments import check_same
from lightning_fairprune.callbacks._data.length import steps_in
from lightning_fairprune.callbacks._data.planned import steps_of_fit
from lightning_fairprune.callbacks._together import pruning_run
from lightning_fairprune.callbacks._weights.settings import WeightSettings
from lightning_fairprune.records.settings import name_of

_TIMING = ("sparsity", "schedule", "start", "end", "every", "interval", "rewind")


@dataclass(frozen=True, slots=True)
class Plan:
    """When each pruning of a fit is due, and its target.

    Args:
        at: finished epochs or optimiser steps, rising.
        sparsity: in [0, 1), never falling.

    Example:
        >>> Plan((2, 4), (0.5, 0.9)).due(3)
        1
    """

    at: tuple[int, ...]
    sparsity: tuple[float, ...]

    def due(self, done: int) -> int:
        """Returns how many prunings are due after `done` epochs or steps."""
        return bisect_right(self.at, done)


def plan_of(settings: WeightSettings, total: float) -> Plan:
    """Returns the plan for a training of `total` epochs or steps, infinity if the length is not known.

    Raises:
        ValueError: If it does not fit into training with at least one epoch or step after it.
    """
    first, last, interval = settings.start, settings.end, settings.interval
    start, end = (_resolved(when, interval, total) for when in (first, last))
    if isinstance(first, float) and first > 0:
        start = max(start, 1)
    if isinstance(last, float) and math.isfinite(total):
        end = min(end, int(total) - 1)
        # In a short training both fractions may round to the same number.
        end = max(start, end) if isinstance(first, float) else end
    if end < start:
        raise ValueError(
            f"`end` must not be before `start`, got {last} and {first}, which are {interval}s {end} "
            f"and {start}."
        )
    at = tuple(range(start, end + 1, settings.every))
    if at[-1] >= total:
        raise ValueError(
            f"the last pruning must leave at least one {interval} of training after it, but "
            f"it comes after {at[-1]} of {int(total)}: lower `end`, or train for longer."
        )
    return Plan(at, _targets(settings, len(at)))


def _resolved(when: int | float, interval: str, total: float) -> int:
    if isinstance(when, int):
        return when
    if when and not math.isfinite(total):
        raise ValueError(
            f"`start` and `end` are fractions of training, whose length in {interval}s is unknown: "
            f"give Trainer(max_{interval}s=...), or whole numbers of {interval}s."
        )
    return round(when * total) if when else 0


def _targets(settings: WeightSettings, count: int) -> tuple[float, ...]:
    found: Any = settings.schedule(settings.sparsity, count)
    good = isinstance(found, Sequence) and len(found) == count
    rising = good and all(a <= b for a, b in itertools.pairwise(found))
    if not rising or found[0] < 0 or found[-1] != settings.sparsity:
        raise ValueError(
            f"`schedule` must return {count} sparsities from 0 that never fall and end with "
            f"{settings.sparsity}, got {found}."
        )
    return tuple(map(float, found))


def plan_state(settings: WeightSettings, plan: Plan | None) -> dict[str, Any]:
    """Returns the plan and the arguments that it was made from, as primitives."""
    rows = None if plan is None else [list(plan.at), list(plan.sparsity)]
    return {"timing": _timing(settings), "plan": rows}


def restored_plan(
    settings: WeightSettings, state: Mapping[str, Any], now: Plan | None
) -> Plan | None:
    """Returns the plan of a checkpoint; raises if the arguments that it was made from mean another one.

    `now` is the plan that the arguments mean in this fit, which may have another length.
    """
    timing, before = _timing(settings), state["timing"]
    if state["plan"] is None:
        check_same("WeightPruning", timing, before)
        return None
    at, sparsity = state["plan"]
    plan = Plan(tuple(at), tuple(sparsity))
    if now == plan and settings.interval == before["interval"]:
        said_otherwise = ("schedule", "start", "end", "every")
        timing = {name: value for name, value in timing.items() if name not in said_otherwise}
    check_same("WeightPruning", timing, before)
    if now != plan and settings.interval == "epoch":
        rank_zero_warn(
            f"WeightPruning follows the plan of the checkpoint, which prunes up to epoch {plan.at[-1]}; in a training "
            f"of this length `start`={settings.start} and `end`={settings.end} would mean up to epoch "
            f"{now.at[-1] if now else plan.at[-1]}. To silence this give whole numbers of epochs."
        )
    return plan


def _timing(settings: WeightSettings) -> dict[str, Any]:
    timing = {name: getattr(settings, name) for name in _TIMING}
    return timing | {"schedule": name_of(settings.schedule)}


def end_of_training(trainer: pl.Trainer, interval: str) -> float:
    """Returns the epochs or steps of the whole training, infinity if the length is not known."""
    epochs = trainer.max_epochs
    if interval == "epoch":
        return math.inf if epochs is None or epochs < 0 else epochs
    unknown = epochs is None or epochs < 0 or not math.isfinite(trainer.num_training_batches)
    # With manual optimisation a batch may be any number of steps.
    if unknown or not trainer.lightning_module.automatic_optimization:
        return trainer.max_steps if trainer.max_steps >= 0 else math.inf
    run = pruning_run(trainer)
    if run is None:
        assert epochs is not None
        steps = steps_before(epochs, trainer)
        return min(steps, trainer.max_steps) if trainer.max_steps >= 0 else steps
    return run.first_step + steps_of_fit(run)


def steps_before(epoch: int, trainer: pl.Trainer) -> int:
    """Returns the optimiser steps of the epochs before one; of a loader of unknown length one an epoch."""
    batches = trainer.num_training_batches
    if not math.isfinite(batches):
        return epoch
    return steps_in(range(epoch), int(batches), trainer)


def is_dry(trainer: pl.Trainer) -> bool:
    """Whether this is a fast_dev_run, which ends before anything is pruned."""
    return bool(getattr(trainer, "fast_dev_run", False))
