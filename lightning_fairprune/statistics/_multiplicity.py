"""p-values adjusted for the number of tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_fairprune.statistics._numbers import fractions

__all__ = ["benjamini_hochberg", "bonferroni", "holm"]


def bonferroni(p: Tensor | Sequence[Any]) -> Tensor:
    """Return p times the number of tests, at most 1.

    Args:
        p: p-values in [0, 1] of any shape, together one family; NaN is no test and stays NaN.

    Returns:
        Adjusted p-values, float64, of the shape of `p`.

    Raises:
        ValueError: If a value is outside [0, 1].

    Example:
        >>> bonferroni([0.01, 0.4, float("nan"), 0.02])
        tensor([0.0300, 1.0000,    nan, 0.0600], dtype=torch.float64)
    """
    values = fractions("p", p)
    return (values * (~values.isnan()).sum()).clamp_max(1)


def holm(p: Tensor | Sequence[Any]) -> Tensor:
    """Return Holm's adjusted p-values: never above Bonferroni's, for the same family-wise error.

    The i-th smallest of m is multiplied by `m - i + 1`, and is at least the one before it: Holm, "A simple
    sequentially rejective multiple test procedure" (Scandinavian Journal of Statistics, 1979).

    Args:
        p: as for `bonferroni`.

    Returns:
        Adjusted p-values, float64, of the shape of `p`.

    Raises:
        ValueError: If a value is outside [0, 1].

    Example:
        >>> holm([0.01, 0.4, float("nan"), 0.02])
        tensor([0.0300, 0.4000,    nan, 0.0400], dtype=torch.float64)
    """
    values = fractions("p", p)
    ordered, order, rank = _ordered(values)
    stepped = (ordered * (len(ordered) - rank + 1)).cummax(0).values
    return _put_back(values, order, stepped)


def benjamini_hochberg(p: Tensor | Sequence[Any]) -> Tensor:
    """Return adjusted p-values that bound the share of false findings among all findings.

    The i-th smallest of m is multiplied by `m / i`, and is at most the one after it: Benjamini and Hochberg,
    "Controlling the False Discovery Rate" (Journal of the Royal Statistical Society B, 1995).

    Args:
        p: as for `bonferroni`.

    Returns:
        Adjusted p-values, float64, of the shape of `p`.

    Raises:
        ValueError: If a value is outside [0, 1].

    Example:
        >>> benjamini_hochberg([0.01, 0.4, float("nan"), 0.02])
        tensor([0.0300, 0.4000,    nan, 0.0300], dtype=torch.float64)
    """
    values = fractions("p", p)
    ordered, order, rank = _ordered(values)
    stepped = (ordered * len(ordered) / rank).flip(0).cummin(0).values.flip(0)
    return _put_back(values, order, stepped)


def _ordered(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the values that are not NaN ascending, where they stand, and their ranks from 1."""
    order = values.flatten().argsort(stable=True)  # NaN goes last
    order = order[: int((~values.isnan()).sum())]
    return values.flatten()[order], order, torch.arange(1, len(order) + 1)


def _put_back(values: Tensor, order: Tensor, adjusted: Tensor) -> Tensor:
    """Return `adjusted` at its places, at most 1, and NaN elsewhere."""
    flat = torch.full_like(values.flatten(), torch.nan)
    flat[order] = adjusted.clamp_max(1)
    return flat.view_as(values)
