"""Samples with a label at each of many positions: tokens of a text, pixels of an image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_fairprune import signals
from lightning_fairprune._model.losses import IGNORED


def rows_of(logits: Tensor, target: Tensor, *groups: Tensor) -> tuple[Tensor, ...]:
    """Returns each position as a row: logits [n, C], target [n], and the group of its sample.

    Example:
        >>> rows_of(torch.zeros(2, 5, 3), torch.zeros(2, 3), torch.tensor([7, 8]))[2]
        tensor([7, 7, 7, 8, 8, 8])
    """
    if logits.ndim == 2:
        return logits, target, *groups
    each = target[0].numel() if len(target) else 0
    flat = logits.movedim(1, -1).reshape(-1, logits.shape[1])
    return flat, target.reshape(-1), *(group.repeat_interleave(each) for group in groups)


def sample_signals(names: Sequence[str], logits: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Returns signals [B] of logits [B, C, ...] and targets [B, ...]: the mean over the positions that have a class.

    Whether a sample is correct is whether at least half of its positions are. 0 for a sample without a class.
    """
    rows = rows_of(logits, target.clamp(0, logits.shape[1] - 1))
    values = signals.compute(names, rows[0], rows[1])
    if logits.ndim == 2:
        return values
    known = (target != IGNORED).flatten(1)
    means = {}
    for name, value in values.items():
        of = value.to(torch.promote_types(value.dtype, torch.float32)).reshape(known.shape)
        mean = of.masked_fill(~known, 0).sum(1) / known.sum(1).clamp(min=1)
        means[name] = mean >= 0.5 if value.dtype == torch.bool else mean
    return means


def sample_labels(target: Tensor) -> Tensor:
    """Returns the class of each sample, [B]: with positions 0, or `IGNORED` if all of them are ignored."""
    if target.ndim == 1:
        return target
    nothing = (target == IGNORED).flatten(1).all(1)
    return torch.zeros_like(nothing, dtype=torch.int64).masked_fill(nothing, IGNORED)
