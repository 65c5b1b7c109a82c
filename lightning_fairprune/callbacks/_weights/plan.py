"""When weights are pruned, and how far each time."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import lightning.pytorch as pl

from lightning_fairprune.callbacks._arguments import check_same, function, number, one_of
from lightning_fairprune.callbacks._data.planned import planned_steps
from lightning_fairprune.callbacks._together import pruning_run
from lightning_fairprune.records.settings import name_of

__all__ = ["Plan", "Timing", "end_of_training", "is_dry", "steps_per_epoch", "training_is_over"]


@dataclass(frozen=True, slots=True)
class Plan:
    """Every pruning of a fit.

    Args:
        at: epochs or optimiser steps that are done when each is due, rising.
        sparsity: the target of each, in [0, 1), never falling.

    Example:
        >>> Plan((2, 4), (0.5, 0.9)).due(3)  # one of the two
        1
    """

    at: tuple[int, ...]
    sparsity: tuple[float, ...]

    def due(self, done: int) -> int:
        """Returns how many prunings are due when `done` epochs or steps are."""
        return bisect_right(self.at, done)


@dataclass(frozen=True, slots=True)
class Timing:
    """The arguments of WeightPruning that say when.

    Args:
        sparsity: the last target.
        schedule: the function from it and the number of prunings to all of them.
        start: first pruning, in epochs or steps done, or as a fraction of training.
        end: no pruning after this many.
        every: epochs or steps between two.
        interval: what is counted.
        rewind: where weights go back to after each.
    """

    sparsity: float
    schedule: Callable[..., Any]
    start: int | float
    end: int | float
    every: int
    interval: Literal["epoch", "step"]
    rewind: Literal["start"] | int | None

    def check(self) -> None:
        """Raises a TypeError or ValueError for what is wrong whatever the length of training."""
        function("schedule", self.schedule, "masks.schedules.cubic")
        for name, value in (("sparsity", self.sparsity), ("start", self.start), ("end", self.end)):
            number(name, value)
        number("every", self.every, whole=True)
        if not 0 < self.sparsity < 1:
            raise ValueError(
                f"`sparsity` must be in (0, 1), a fraction of weights to remove, got {self.sparsity}."
            )
        for name, value in (("start", self.start), ("end", self.end)):
            if isinstance(value, float) and not 0 <= value < 1:
                raise ValueError(
                    f"`{name}` must be a whole number of {self.interval}s or a fraction of training in "
                    f"[0, 1), got {value}."
                )
            if value < 0:
                raise ValueError(f"`{name}` must be 0 or more {self.interval}s, got {value}.")
        if type(self.start) is type(self.end) and self.end < self.start:
            raise ValueError(f"`end` must not be before `start`, got {self.end} and {self.start}.")
        if self.every < 1:
            raise ValueError(f"`every` must be at least 1 {self.interval}, got {self.every}.")
        one_of("interval", self.interval, ("epoch", "step"))

    def plan(self, total: float) -> Plan:
        """Returns the plan for a training of `total` epochs or steps, infinity if nobody knows.

        Raises:
            ValueError: If it does not fit into training with at least one epoch or step after it.
        """
        start, end = self._resolved(self.start, total), self._resolved(self.end, total)
        if isinstance(self.start, float) and self.start > 0:
            start = max(start, 1)
        if isinstance(self.end, float) and math.isfinite(total):
            end = min(end, int(total) - 1)
            # Short of epochs, both fractions may round to the same.
            end = max(start, end) if isinstance(self.start, float) else end
        if end < start:
            raise ValueError(
                f"`end` must not be before `start`, got {self.end} and {self.start}, which are "
                f"{self.interval}s {end} and {start}."
            )
        at = tuple(range(start, end + 1, self.every))
        if at[-1] >= total:
            raise ValueError(
                f"the last pruning must leave at least one {self.interval} of training after it, but "
                f"it comes after {at[-1]} of {int(total)}: lower `end`, or train for longer."
            )
        return Plan(at, self._targets(len(at)))

    def _resolved(self, when: int | float, total: float) -> int:
        if isinstance(when, int):
            return when
        if when and not math.isfinite(total):
            raise ValueError(
                f"`start` and `end` are fractions of training, whose length in {self.interval}s is unknown: "
                f"give Trainer(max_{self.interval}s=...), or whole numbers of {self.interval}s."
            )
        return round(when * total) if when else 0

    def _targets(self, count: int) -> tuple[float, ...]:
        found: Any = self.schedule(self.sparsity, count)
        good = isinstance(found, Sequence) and len(found) == count
        rising = good and all(a <= b for a, b in itertools.pairwise(found))
        if not rising or found[0] < 0 or found[-1] != self.sparsity:
            raise ValueError(
                f"`schedule` must return {count} sparsities from 0 that never fall and end with "
                f"{self.sparsity}, got {found}."
            )
        return tuple(map(float, found))

    def state_dict(self, plan: Plan | None) -> dict[str, Any]:
        """Returns primitives, by which a resumed fit recognises its plan."""
        own = asdict(self) | {"schedule": name_of(self.schedule)}
        if plan is None:
            return {"timing": own, "plan": None}
        return {"timing": own, "plan": [list(plan.at), list(plan.sparsity)]}

    def restored(self, state: Mapping[str, Any]) -> Plan | None:
        """Returns the plan that was made when the fit began; raises if arguments have changed."""
        check_same("WeightPruning", self.state_dict(None)["timing"], state["timing"])
        if state["plan"] is None:
            return None
        at, sparsity = state["plan"]
        return Plan(tuple(at), tuple(sparsity))


def end_of_training(trainer: pl.Trainer, interval: str) -> float:
    """Returns the epochs or steps that training will have, infinity if nobody knows."""
    epochs = trainer.max_epochs
    if interval == "epoch":
        return math.inf if epochs is None or epochs < 0 else epochs
    unknown = epochs is None or epochs < 0 or not math.isfinite(trainer.num_training_batches)
    # With manual optimisation a batch may be any number of steps.
    if unknown or not trainer.lightning_module.automatic_optimization:
        return trainer.max_steps if trainer.max_steps >= 0 else math.inf
    run = pruning_run(trainer)
    if run is None:
        return int(trainer.estimated_stepping_batches)
    steps = planned_steps(run)
    if run.settings.after == "restart":
        steps += run.warmup * steps_per_epoch(trainer)
    return steps


def steps_per_epoch(trainer: pl.Trainer) -> int:
    """Returns the optimiser steps of an epoch as it is now; 1 or more."""
    batches = trainer.num_training_batches
    if not math.isfinite(batches):
        return 1
    return max(1, math.ceil(batches / trainer.accumulate_grad_batches))


def training_is_over(trainer: pl.Trainer, epochs_done: int) -> bool:
    """Whether no step will follow, as far as one can know now."""
    max_epochs, max_steps = trainer.max_epochs, trainer.max_steps
    if 0 <= max_steps <= trainer.global_step:
        return True
    # A stop that was asked for too early waits for these, and is asked for all the while.
    least = epochs_done >= (trainer.min_epochs or 0)
    if trainer.should_stop and least and trainer.global_step >= (trainer.min_steps or 0):
        return True
    return max_epochs is not None and 0 <= max_epochs <= epochs_done


def is_dry(trainer: pl.Trainer) -> bool:
    """Whether this is a fast_dev_run, which ends before anything is pruned."""
    return bool(getattr(trainer, "fast_dev_run", False))
