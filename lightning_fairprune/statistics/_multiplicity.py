"""p-values adjusted for the number of tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_fairprune.statistics._numbers import fractions, scipy_stats


def bonferroni(p: Tensor | Sequence[Any]) -> Tensor:
    """Return p times the number of tests, at most 1.

    Args:
        p: p-values in [0, 1] of one family, any shape; NaN does not count as a test and stays NaN.

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
    sequentially rejective multiple test procedure" (Scandinavian Journal of Statistics, 1979). Argument,
    shape and errors are those of `bonferroni`.

    Example:
        >>> holm([0.01, 0.4, float("nan"), 0.02])
        tensor([0.0300, 0.4000,    nan, 0.0400], dtype=torch.float64)
    """
    values = fractions("p", p)
    ordered, order = values[known := ~values.isnan()].sort(stable=True)
    stepped = (ordered * torch.arange(len(order), 0, -1)).cummax(0).values.clamp_max(1)
    return values.masked_scatter(known, stepped[order.argsort()])


def benjamini_hochberg(p: Tensor | Sequence[Any]) -> Tensor:
    """Return adjusted p-values that control the false discovery rate.

    The i-th smallest of m is multiplied by `m / i`, and is at most the one after it: Benjamini and Hochberg,
    "Controlling the False Discovery Rate" (Journal of the Royal Statistical Society B, 1995). Argument,
    shape and errors are those of `bonferroni`. Needs scipy.

    Example:
        >>> benjamini_hochberg([0.01, 0.4, float("nan"), 0.02])
        tensor([0.0300, 0.4000,    nan, 0.0300], dtype=torch.float64)
    """
    values = fractions("p", p)
    known = ~values.isnan()
    adjusted = scipy_stats().false_discovery_control(values[known].numpy())
    return values.masked_scatter(known, torch.as_tensor(adjusted))
