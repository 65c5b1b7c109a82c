"""The checks that several functions share."""

from __future__ import annotations

import operator

import torch
from torch import Tensor


def checked_features(features: Tensor, name: str = "features") -> Tensor:
    """Return finite features [N, D] without gradient, as float32 or float64."""
    if not isinstance(features, Tensor) or features.dim() != 2 or not features.shape[1]:
        shape = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(
            f"`{name}` must be a tensor of shape [N, D] with D at least 1, got {shape}."
        )
    if not features.is_floating_point():
        raise TypeError(f"`{name}` must be floating point, got {features.dtype}.")
    features = features.detach()
    if features.dtype != torch.float64:
        features = features.float()
    # aminmax returns NaN and infinity, in one pass and without a copy.
    if features.numel() and not bool(torch.stack(features.aminmax()).isfinite().all()):
        bad = ~features.isfinite().all(1)
        raise ValueError(
            f"`{name}` must be finite: {int(bad.sum())} of {len(features)} samples hold NaN or "
            f"infinity, first at index {int(bad.nonzero()[0])}; leave them out or repair them."
        )
    return features


def checked_target(target: Tensor, features: Tensor) -> Tensor:
    """Return the labels int64 [N] on the device of the features."""
    if not isinstance(target, Tensor) or target.shape != features.shape[:1]:
        shape = list(target.shape) if isinstance(target, Tensor) else type(target).__name__
        raise ValueError(
            f"`target` must be a tensor of shape [{len(features)}], one label per sample, got {shape}."
        )
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        raise TypeError(f"`target` must hold integers, got {target.dtype}.")
    target = target.detach().to(features.device).long()
    if len(target) and int(target.min()) < -1:
        raise ValueError(f"`target` must be >= -1, got {int(target.min())}.")
    return target


def class_members(target: Tensor) -> tuple[Tensor, ...]:
    """Returns the indices of the samples of every class from 0 on, ascending; -1 is no class."""
    order = target.argsort(stable=True)
    size = torch.bincount(target + 1, minlength=1)
    members: tuple[Tensor, ...] = torch.split(order, size.tolist())
    return members[1:]


def integer(name: str, value: object) -> int:
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"`{name}` must be an int, got {value!r}.") from None
