"""The position of a fit inside an epoch, in samples of the whole epoch over all ranks.

A checkpoint holds the position in samples and what batches were made with. A fit that is resumed with other batches
trains on the samples that are left, each once, in the order of the epoch: the last batches are its own last ones, and
the Trainer counts backwards from them. An epoch that was complete stays complete.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader

from lightning_fairprune._loading.sampler import EpochSampler

# What may differ between the two parts of an epoch.
_BATCHES = ("batch_size", "ranks", "drop_last", "limit_train_batches", "accumulate_grad_batches")


@dataclass(frozen=True)
class Position:
    """Where an epoch is.

    Args:
        epoch: the current one, or the next after a complete one.
        samples: of the epoch that are done, over all ranks.
        batches: that the Trainer counts for them.
    """

    epoch: int = 0
    samples: int = 0
    batches: int = 0


def limited(batches: int, trainer: pl.Trainer) -> int:
    """Returns how many batches of an epoch the Trainer runs."""
    limit = trainer.limit_train_batches
    return min(batches, limit) if isinstance(limit, int) else int(batches * limit)


def progress(trainer: pl.Trainer) -> int:
    """Returns the batches of the epoch that the Trainer counts as done."""
    return int(trainer.fit_loop.epoch_loop.batch_progress.current.processed)  # type: ignore[attr-defined]


def now(trainer: pl.Trainer, loader: DataLoader[Any], base: Position) -> tuple[Position, int]:
    """Returns the position, and the batches whose gradients no step has used and no checkpoint holds.

    The position is before these batches.
    """
    epochs: Any = trainer.fit_loop.epoch_progress.current
    if is_at_epoch_start(trainer):
        return Position(trainer.current_epoch), 0
    if _is_processed(trainer):  # also an epoch that was cut, whose batches still count
        return Position(epochs.processed), 0
    done = progress(trainer)
    if done >= trainer.num_training_batches:
        return Position(trainer.current_epoch + 1), 0
    if base.epoch != trainer.current_epoch:
        base = Position(trainer.current_epoch)
    pending = 0
    module = trainer.lightning_module
    if module is not None and module.automatic_optimization:
        pending = min(done % trainer.accumulate_grad_batches, max(done - base.batches, 0))
    batches = done - pending
    samples = base.samples + (batches - base.batches) * _in_a_batch(loader)
    return Position(base.epoch, samples, batches), pending


def is_at_epoch_start(trainer: pl.Trainer) -> bool:
    """Whether an epoch begins whose first batch is not prepared, as in `on_train_epoch_start`."""
    epochs: Any = trainer.fit_loop.epoch_progress.current
    return bool(epochs.started < epochs.ready)


def begin_epoch(trainer: pl.Trainer) -> None:
    """Has the Trainer begin an epoch with its first batch.

    A checkpoint of an exception in `on_train_epoch_start` holds the count of the epoch before, and the Trainer that
    resumes it would skip as many batches.
    """
    loop: Any = trainer.fit_loop.epoch_loop
    loop.batch_progress.reset_on_run()
    loop.scheduler_progress.reset_on_run()
    loop.automatic_optimization.optim_progress.reset_on_run()
    loop.val_loop.batch_progress.total.reset()


def batches_of(trainer: pl.Trainer, loader: DataLoader[Any]) -> dict[str, Any]:
    """Returns what batches are made with."""
    sampler: Any = loader.sampler
    found = (
        loader.batch_size,
        sampler.num_replicas,
        loader.drop_last,
        trainer.limit_train_batches,
        trainer.accumulate_grad_batches,
    )
    return dict(zip(_BATCHES, found, strict=True))


def is_to_move(trainer: pl.Trainer, loader: DataLoader[Any], state: Mapping[str, Any]) -> bool:
    """Whether the Trainer's count of batches is not that of the loader; arguments as of `resumed`."""
    return bool(state["pending"] or _changed(trainer, loader, state))


def _changed(trainer: pl.Trainer, loader: DataLoader[Any], state: Mapping[str, Any]) -> list[str]:
    now = batches_of(trainer, loader)
    return [name for name in _BATCHES if now[name] != state["batches"][name]]


def resumed(
    trainer: pl.Trainer,
    loader: DataLoader[Any],
    base: Position,
    state: Mapping[str, Any],
    *,
    stateful: bool,
) -> Position:
    """Moves the Trainer's count of batches to where the samples of a checkpoint end in a new loader.

    Args:
        trainer: with the count of the checkpoint.
        loader: the new one.
        base: the position of the checkpoint.
        state: the checkpoint's `batches_of`, with the count of batches (`done`) and those without a step (`pending`).
        stateful: whether the loader resumes by itself, in batches.

    Returns:
        The position with the new count.

    Raises:
        ValueError: If no whole batch is left, or the loader cannot resume in other batches.
    """
    before, mine = state["batches"], batches_of(trainer, loader)
    changed = _changed(trainer, loader, state)
    is_over = not base.samples and not state["pending"]
    said = ", ".join(
        f"`{name}`={mine[name]} where the checkpoint has {before[name]}" for name in changed
    )
    sampler: Any = loader.sampler
    full = batches_in(loader, sampler.num_samples)
    planned = limited(full, trainer)
    if is_over and _is_processed(trainer):
        return base  # the Trainer starts the next one at its first batch
    if is_over:
        _shift(trainer, planned - state["done"])
        return base
    if stateful:
        what = said or "batches whose gradients were not used yet"
        raise ValueError(
            f"the checkpoint was taken inside epoch {base.epoch}, and a {type(loader).__name__} counts its position "
            f"in batches, so that it cannot be resumed with {what}: give the same, or resume from a checkpoint "
            "at an epoch's end."
        )
    left = batches_in(loader, sampler.size_after(base.samples))
    if planned < full:
        left = min(left, -(-(planned * _in_a_batch(loader) - base.samples) // _in_a_batch(loader)))
    total = sampler.size_of_epoch
    if left <= 0:
        raise ValueError(
            f"the checkpoint was taken after {base.samples} of {total} samples of epoch {base.epoch}, and with {said} "
            "no batch of that epoch is left: give the same, or resume from a checkpoint at an epoch's end."
        )
    if state["pending"]:
        rank_zero_warn(
            f"the checkpoint was taken inside an accumulation, and holds no gradients: {state['pending']} batches of "
            f"epoch {base.epoch} before it are trained on again, as no step has used them."
        )
    if changed:
        rank_zero_warn(
            f"epoch {base.epoch} is resumed after {base.samples} of {total} samples with {said}: the others are "
            f"trained on in {left} batches, which the Trainer counts as the last of {planned}."
        )
    batches = planned - left
    _shift(trainer, batches - state["done"])
    return Position(base.epoch, base.samples, batches)


def _is_processed(trainer: pl.Trainer) -> bool:
    epochs: Any = trainer.fit_loop.epoch_progress.current
    return bool(epochs.processed >= epochs.ready)


def _shift(trainer: pl.Trainer, by: int) -> None:
    # All counts alike: which of them differ says at which hook the checkpoint was taken.
    for part in ("current", "total"):
        counts = getattr(trainer.fit_loop.epoch_loop.batch_progress, part)
        for name in ("ready", "started", "processed", "completed"):
            setattr(counts, name, getattr(counts, name) + by)


def _in_a_batch(loader: DataLoader[Any]) -> int:
    sampler = loader.sampler
    assert isinstance(sampler, EpochSampler)
    assert loader.batch_size is not None
    return loader.batch_size * sampler.num_replicas


def batches_in(loader: DataLoader[Any], samples: int) -> int:
    """Returns the batches of one rank with so many samples, before any limit."""
    size = loader.batch_size
    assert size is not None
    return samples // size if loader.drop_last else -(-samples // size)
