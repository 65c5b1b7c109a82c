"""What the rules of this package check about their arguments, and the form they compute with."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = [
    "class_counts",
    "errors",
    "integer",
    "integers",
    "losses",
    "recalls",
    "sizes_and_capacity",
]


def recalls(recall: Tensor | Sequence[float], num_classes: int) -> Tensor:
    """Return the recalls as float64 [K], where NaN stands for a class never seen."""
    rate = _per_class("recall", recall, num_classes)
    wrong = (rate < 0) | (rate > 1)
    if bool(wrong.any()):
        k = int(wrong.nonzero()[0])
        raise ValueError(
            f"`recall` must be in [0, 1], or NaN for a class never seen in validation, "
            f"got {float(rate[k])} for class {k}."
        )
    return rate


def errors(recall: Tensor | Sequence[float], size: Tensor) -> Tensor:
    """Return 1 - recall; classes never seen count as average, and no errors at all as equal."""
    return _filled(1 - recalls(recall, len(size)), size)


def losses(loss: Tensor | Sequence[float], size: Tensor) -> Tensor:
    """Return the mean loss of each class; unknown ones count as average, and no loss at all as equal."""
    value = _per_class("loss", loss, len(size))
    wrong = (value < 0) | value.isinf()
    if bool(wrong.any()):
        k = int(wrong.nonzero()[0])
        raise ValueError(
            f"`loss` must be finite and >= 0, or NaN for a class never seen, "
            f"got {float(value[k])} for class {k}."
        )
    return _filled(value, size)


def _per_class(name: str, value: Tensor | Sequence[float], num_classes: int) -> Tensor:
    tensor = torch.as_tensor(value, dtype=torch.float64).detach().cpu()
    if tensor.shape != (num_classes,):
        raise ValueError(
            f"`{name}` must have one entry per class, got shape {tuple(tensor.shape)} "
            f"for {num_classes} classes."
        )
    return tensor


def _filled(badness: Tensor, size: Tensor) -> Tensor:
    """Return the values with the mean where they are NaN; only classes with samples have a say."""
    badness = torch.where(size > 0, badness, torch.nan)
    badness = torch.where(badness.isnan(), badness.nanmean(), badness)
    return badness if bool((badness > 0).any()) else torch.ones_like(badness)


def sizes_and_capacity(
    sizes: Tensor | Sequence[int], cap: int | Tensor | Sequence[int] | None
) -> tuple[Tensor, Tensor]:
    """Return the class sizes as float64 [K] and min(sizes, cap) as int64 [K]."""
    size = class_counts("sizes", sizes)
    return size.double(), size if cap is None else size.minimum(class_counts("cap", cap, len(size)))


def class_counts(
    name: str, value: int | Tensor | Sequence[int], num_classes: int | None = None
) -> Tensor:
    """Return counts as int64 [K] on the CPU; an int stands for every class."""
    counts = integers(name, value)
    if num_classes is not None and counts.dim() == 0:
        counts = counts.expand(num_classes)
    if counts.dim() != 1 or num_classes not in (None, len(counts)):
        wanted = "one-dimensional" if num_classes is None else f"an int or of shape [{num_classes}]"
        raise ValueError(f"`{name}` must be {wanted}, got shape {tuple(counts.shape)}.")
    if bool((counts < 0).any()):
        k = int((counts < 0).nonzero()[0])
        raise ValueError(f"`{name}` must be >= 0, got {int(counts[k])} for class {k}.")
    return counts


def integers(name: str, value: int | Tensor | Sequence[int]) -> Tensor:
    tensor = torch.as_tensor(value).detach().cpu()
    integral = not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)
    if not integral and tensor.numel():  # an empty list has no dtype of its own
        raise TypeError(f"`{name}` must hold integers, got {tensor.dtype}.")
    return tensor.to(torch.int64)


def integer(name: str, value: int) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"`{name}` must be an int, got {value!r}.") from None
