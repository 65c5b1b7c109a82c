"""The values that a monitor logs, and what it reads from the Trainer."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from lightning_fairprune import recalls
from lightning_fairprune.counts import ClassCounts
from lightning_fairprune.records.recall_history import RecallHistory, is_of_groups

# Each value that the module logs costs a reduction; the recalls of more classes go to the loggers
# directly and cannot be monitored.
MOST_MONITORED = 100


@dataclass(frozen=True, slots=True)
class Values:
    """The values of one evaluation: of all classes, and of each class that has a sample."""

    summary: dict[str, float]
    single: dict[str, float]


def values(
    prefix: str, counts: ClassCounts, reference: ClassCounts | None, names: Sequence[str] | None
) -> Values:
    """Returns the values of counts (of classes or groups), by name."""
    summary = {name: getattr(counts, name) for name in ("worst", "gap", "std", "mean")}
    if reference is not None:
        summary |= _distortion(counts, reference)
    one = "group" if is_of_groups(prefix) else "class"
    called = names or [str(k) for k in range(counts.num_classes)]
    seen = (counts.support > 0).tolist()
    return Values(
        {f"{prefix}/recall/{name}": value for name, value in summary.items()},
        {
            f"{prefix}/recall/{one}/{name}": recall
            for name, recall, has_any in zip(called, counts.recall.tolist(), seen, strict=True)
            if has_any
        },
    )


def log(trainer: pl.Trainer, module: pl.LightningModule, found: Values) -> None:
    """Logs values so that callbacks can monitor them; of too many classes only the summary."""
    monitored = found.summary
    if len(found.single) <= MOST_MONITORED:
        monitored = monitored | found.single
    else:
        _send(trainer, found.single)
    # All ranks hold the same values; sync_dist avoids a warning of the Trainer.
    module.log_dict(monitored, sync_dist=trainer.world_size > 1, add_dataloader_idx=False)


def log_part(
    trainer: pl.Trainer,
    module: pl.LightningModule,
    found: Mapping[str, ClassCounts],
    history: RecallHistory,
) -> None:
    """Logs the rest of a validation that a checkpoint has cut in two, for callbacks that monitor it."""
    rank_zero_warn(
        f"the checkpoint was taken inside the validation of epoch {trainer.current_epoch}, and the Trainer "
        "has run only a part of it: its recalls are logged for callbacks that monitor them, but not "
        "compared or saved. Checkpoints at the end of an epoch resume exactly."
    )
    for prefix, counts in found.items():
        log(trainer, module, values(prefix, counts, None, history.names_of(prefix)))


@rank_zero_only
def _send(trainer: pl.Trainer, found: dict[str, float]) -> None:
    for logger in trainer.loggers:
        logger.log_metrics(found, step=trainer.global_step)


def _distortion(counts: ClassCounts, reference: ClassCounts) -> dict[str, float]:
    now, before = counts.recall, reference.recall
    accuracies = counts.accuracy, reference.accuracy
    return {
        "alpha": float(recalls.intensification(now, before, *accuracies)),
        "worst_change": float(recalls.worst(recalls.change(now, before))),
        "disparity": float(recalls.disparity(now, before, *accuracies)),
    }


def pruned(trainer: pl.Trainer) -> bool:
    """Whether a callback has pruned data or weights."""
    return any(getattr(callback, "pruned", False) for callback in trainer.callbacks)  # type: ignore[attr-defined]


def seed() -> int | None:
    """Returns the argument of `seed_everything`."""
    value = os.environ.get("PL_GLOBAL_SEED")
    return int(value) if value is not None else None


def check_any_batch(batches: list[int | float], limit: float, what: str) -> None:
    """Raises a ValueError if a loader of an evaluation is empty."""
    if limit != 0 and 0 in batches:
        raise ValueError(
            f"RecallMonitor: loader {batches.index(0)} of the {what} must give at least one batch, it "
            "is empty."
        )
