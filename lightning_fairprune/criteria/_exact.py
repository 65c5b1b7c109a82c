"""Keeping an exact number of weights."""

from __future__ import annotations

import torch
from torch import Tensor


def check_sparsity(sparsity: float) -> None:
    if not 0 <= sparsity < 1:
        raise ValueError(
            f"`sparsity` must be the fraction of weights removed, in [0, 1), got {sparsity}."
        )


def num_kept(size: int, sparsity: float) -> int:
    return size - round(size * sparsity)


def keep_highest(values: Tensor, count: int) -> Tensor:
    """Returns a mask [n] of exactly `count` highest values; of equal ones, the earlier stay."""
    if count == 0:
        return torch.zeros_like(values, dtype=torch.bool)
    threshold = values.kthvalue(len(values) - count + 1).values
    above, equal = values > threshold, values == threshold
    return above | (equal & (equal.cumsum(0) <= count - above.sum()))
