"""Checks and conversions of the arguments of the rules."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor

_MOST_REPEATS = 2**20  # times 2**30 samples of a class, the most that `apportion` takes


def recalls(recall: Tensor | Sequence[float], num_classes: int) -> Tensor:
    """Return the recalls as float64 [K], NaN for a class never seen."""
    return _per_class(
        "recall", recall, num_classes, 1.0, "in [0, 1], or NaN for a class never seen in validation"
    )


def errors(recall: Tensor | Sequence[float], size: Tensor) -> Tensor:
    """Return 1 - recall: the mean for a class never seen, ones if no class has an error."""
    return _filled(1 - recalls(recall, len(size)), size)


def losses(loss: Tensor | Sequence[float], size: Tensor, name: str = "loss") -> Tensor:
    """Return the mean losses: their mean for a class never seen, ones if no class has a loss."""
    most = torch.finfo(torch.float64).max
    what = "finite and >= 0, or NaN for a class never seen"
    return _filled(_per_class(name, loss, len(size), most, what), size)


def _per_class(
    name: str, value: Tensor | Sequence[float], num_classes: int, most: float, what: str
) -> Tensor:
    tensor = torch.as_tensor(value, dtype=torch.float64).detach().cpu()
    if tensor.shape != (num_classes,):
        raise ValueError(
            f"`{name}` must have one entry per class, got shape {tuple(tensor.shape)} "
            f"for {num_classes} classes."
        )
    wrong = (tensor < 0) | (tensor > most)
    if bool(wrong.any()):
        k = int(wrong.nonzero()[0])
        raise ValueError(f"`{name}` must be {what}, got {float(tensor[k])} for class {k}.")
    return tensor


def _filled(badness: Tensor, size: Tensor) -> Tensor:
    """Fill NaN with the mean over the classes with samples; return ones if no value is above 0."""
    badness = torch.where(size > 0, badness, torch.nan)
    badness = torch.where(badness.isnan(), badness.nanmean(), badness)
    return badness if bool((badness > 0).any()) else torch.ones_like(badness)


def sizes_and_capacity(
    sizes: Tensor | Sequence[int], cap: int | Tensor | Sequence[int] | None, repeat: int = 1
) -> tuple[Tensor, Tensor]:
    """Return as how large a class counts, float64 [K], and min(repeat * sizes, cap), int64 [K].

    A class counts as large as it can be drawn, but at most as large as the largest.
    """
    size = class_counts("sizes", sizes)
    most = size * repeats(repeat)
    counted = most.clamp(max=int(size.max())) if len(size) else size
    if cap is not None:
        most = most.minimum(class_counts("cap", cap, len(size)))
    return counted.double(), most


def repeats(repeat: int) -> int:
    """Return how often a sample may be drawn in an epoch, in [1, 2**20]."""
    repeat = integer("repeat", repeat)
    if not 1 <= repeat <= _MOST_REPEATS:
        raise ValueError(f"`repeat` must be at least 1 and at most 2**20, got {repeat}.")
    return repeat


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
