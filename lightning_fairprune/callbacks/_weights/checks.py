"""Checks before weights are pruned."""

from __future__ import annotations

import lightning.pytorch as pl

from lightning_fairprune._lightning.kinds import shards_weights
from lightning_fairprune.callbacks._together import pruning_run
from lightning_fairprune.callbacks._weights.masks import averages
from lightning_fairprune.callbacks._weights.plan import Plan, steps_before
from lightning_fairprune.callbacks._weights.settings import WeightSettings


def strategy(trainer: pl.Trainer) -> None:
    """Raises if the strategy shards the weights."""
    if shards_weights(trainer.strategy):
        raise ValueError(
            "WeightPruning must have all weights on every process, but "
            f"{type(trainer.strategy).__name__} shards them: use DDP or one device."
        )


def sizes(settings: WeightSettings, sizes: dict[str, int]) -> None:
    """Raises if the last target leaves less than `floor` keeps."""
    total, sparsity = sum(sizes.values()), settings.sparsity
    least = sum(min(settings.floor, size) for size in sizes.values())
    remaining = total - round(sparsity * total)
    if remaining < least:
        raise ValueError(
            f"`floor`={settings.floor} keeps {least} weights in {len(sizes)} layers, but `sparsity`="
            f"{sparsity} leaves {remaining} of {total}: lower one of them."
        )


def begins_before(settings: WeightSettings, trainer: pl.Trainer, plan: Plan) -> None:
    """Raises if a fit without a state of WeightPruning begins after the first pruning of its plan."""
    interval, first = settings.interval, plan.at[0]
    done = trainer.current_epoch if interval == "epoch" else trainer.global_step
    if first < done:
        raise ValueError(
            f"this fit begins after {done} {interval}s without a state of WeightPruning (from a checkpoint of a fit "
            f"without it, or where the Trainer has stopped before), but the first pruning is planned after {first}: "
            f"give `start` and `end` in {interval}s of the whole training, from {done} on."
        )


def plan(settings: WeightSettings, trainer: pl.Trainer, plan: Plan) -> None:
    """Raises if the plan does not fit the rewind, the steps of training or the restart of DataPruning."""
    interval, first, last = settings.interval, plan.at[0], plan.at[-1]

    def counted(epochs: int) -> int:
        return epochs if interval == "epoch" else steps_before(epochs, trainer)

    if settings.rewind is not None and counted(settings.rewind_epoch) >= max(first, 1):
        raise ValueError(
            f"`rewind` must be before the first pruning, got epoch {settings.rewind_epoch} and a first "
            f"pruning after {first} {interval}s."
        )
    if settings.rewind is not None and any(True for _ in averages(trainer)):
        raise ValueError(
            "`rewind` resets the weights, but not the average of them that another callback keeps: "
            "remove one of them."
        )
    run = pruning_run(trainer)
    # With manual optimisation a batch may be any number of steps.
    is_known = run is None and trainer.lightning_module.automatic_optimization
    steps = steps_before(last, trainer)
    if interval == "epoch" and is_known and 0 <= trainer.max_steps <= steps:
        raise ValueError(
            "the last pruning must leave at least one step of training after it, but it comes after "
            f"{last} epochs ({steps} steps) with max_steps={trainer.max_steps}: lower `end`, or train for "
            "longer."
        )
    if run is not None and run.settings.after == "restart" and first <= counted(run.swap_epoch):
        raise ValueError(
            f"DataPruning(after='restart') resets all weights after its warm-up of {run.warmup} "
            "epochs, so weights must be pruned later: raise `start`."
        )
