"""Checks of labels, integers with -1 where a sample must not be selected, and of how often one may be drawn."""

from __future__ import annotations

import torch
from torch import Tensor


def labels(target: Tensor) -> tuple[Tensor, bool]:
    """Return the labels as int64 on the CPU, and whether any is -1."""
    if not isinstance(target, Tensor) or target.dim() != 1:
        raise ValueError(
            f"`target` must be a tensor of shape [N], got {getattr(target, 'shape', target)!r}."
        )
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        raise TypeError(f"`target` must hold integers, got {target.dtype}.")
    target = target.detach().cpu().long()
    least = int(target.min()) if len(target) else 0
    if least < -1:
        raise ValueError(f"`target` must be >= -1, got {least}.")
    return target, least < 0


def class_sizes(target: Tensor, excluded: bool, num_classes: int) -> Tensor:
    """Return how many samples each class has, int64 [at least num_classes]."""
    if not excluded:
        return torch.bincount(target, minlength=num_classes)
    return torch.bincount(target + 1, minlength=num_classes + 1)[1:]


def checked_repeat(repeat: int) -> int:
    """Return how often an epoch may draw the same sample; the limit keeps products within 64 bits."""
    if not 1 <= repeat <= 2**20:
        raise ValueError(f"`repeat` must be at least 1 and at most 2**20, got {repeat}.")
    return repeat
