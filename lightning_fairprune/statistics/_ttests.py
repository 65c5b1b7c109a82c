"""t tests over models, and the families of tests in the papers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from lightning_fairprune.statistics._multiplicity import bonferroni
from lightning_fairprune.statistics._numbers import ROUNDING, moments, numbers, scipy_stats

Alternative = Literal["two-sided", "less", "greater"]


@dataclass(frozen=True, slots=True, eq=False)
class TTest:
    """One or several t tests, as float64 tensors of one shape.

    Args:
        statistic: t; infinite if the means differ and the variance is 0.
        p: p-value; NaN where there are too few models, or neither difference nor variance.
        adjusted: p times the number of tests, at most 1 (`bonferroni`).
    """

    statistic: Tensor
    p: Tensor
    adjusted: Tensor


def paired_test(
    x: Tensor | Sequence[Any], y: Tensor | Sequence[Any], alternative: Alternative = "two-sided"
) -> TTest:
    """Return the paired t test of the same models under two conditions.

    Args:
        x: one value per model, [..., M].
        y: values of the same models, [..., M]; a model that is NaN in either is left out.
        alternative: "less" (the mean of `x` is below that of `y`), "greater" or "two-sided".

    Returns:
        The tests, [...]; undefined below two models.

    Raises:
        ValueError: If the shapes differ or `alternative` is none of the three.

    Example:
        Differences -1, -2, -3: mean -2 and standard error .577.

        >>> found = paired_test([1.0, 2.0, 3.0], [2.0, 4.0, 6.0], "less")
        >>> round(found.statistic.item(), 3), round(found.p.item(), 4)
        (-3.464, 0.0371)
    """
    first, second = numbers("x", x), numbers("y", y)
    if first.shape != second.shape or not first.ndim:
        raise ValueError(
            "`x` and `y` must have one shape [..., M], a value per model, got "
            f"{list(first.shape)} and {list(second.shape)}."
        )
    # The differences against a constant 0, which changes neither error nor degrees of freedom.
    zero = torch.zeros(2, dtype=torch.float64)
    return _t_test(first - second, zero, torch.cat([first, second], -1), alternative, False)


def independent_test(
    x: Tensor | Sequence[Any],
    y: Tensor | Sequence[Any],
    alternative: Alternative = "two-sided",
    *,
    equal_var: bool = False,
) -> TTest:
    """Return the t test of two populations of models.

    Args:
        x: one value per model, [..., M].
        y: one value per model, [..., M2], with the same leading axes. NaN is left out.
        alternative: as for `paired_test`.
        equal_var: False for Welch's test, True for Student's with a pooled variance. Good et al. do not
            say which they use.

    Returns:
        The tests, [...]. Welch's is undefined below two models on either side, Student's below three in all.

    Raises:
        ValueError: If the shapes do not fit or `alternative` is none of the three.

    Example:
        Means 1 and 4, variances 2: standard error sqrt(2), 2 degrees of freedom.

        >>> found = independent_test([0.0, 2.0], [3.0, 5.0])
        >>> round(found.statistic.item(), 3), round(found.p.item(), 3)
        (-2.121, 0.168)
    """
    first, second = numbers("x", x), numbers("y", y)
    if not first.ndim or not second.ndim or first.shape[:-1] != second.shape[:-1]:
        raise ValueError(
            "`x` [..., M] and `y` [..., M2] must agree in all but the last axis, got "
            f"{list(first.shape)} and {list(second.shape)}."
        )
    return _t_test(first, second, torch.cat([first, second], -1), alternative, equal_var)


def consecutive_tests(alphas: Tensor | Sequence[Any], alternative: Alternative = "less") -> TTest:
    """Return the paired test of each pruning ratio against the next.

    Good et al., section 7.1: one-sided, over the same models, p multiplied by the number of tests.

    Args:
        alphas: intensification ratios in the order of the pruning ratios, [T, M], T >= 2.
        alternative: as for `paired_test`, of each ratio relative to the next.

    Returns:
        The tests, [T - 1]; `adjusted` is the paper's p.

    Raises:
        ValueError: If `alphas` has another shape.

    Example:
        Mean differences -.3 and -.4, both with deviation .1: t is -5.196 and -6.928.

        >>> consecutive_tests([[0.9, 1.0, 1.1], [1.1, 1.3, 1.5], [1.5, 1.6, 2.0]]).adjusted
        tensor([0.0351, 0.0202], dtype=torch.float64)
    """
    values = _conditions(alphas)
    return paired_test(values[:-1], values[1:], alternative)


def all_pairs_tests(alphas: Tensor | Sequence[Any]) -> tuple[Tensor, TTest]:
    """Return the pairs of rows, and the two-sided paired test of each.

    Good et al., section 7.4, where the rows are pruning methods applied to the same models.

    Args:
        alphas: one row per method, [T, M], T >= 2.

    Returns:
        The pairs, int64 [P, 2] with P = T (T - 1) / 2, and their tests, [P].

    Raises:
        ValueError: If `alphas` has another shape.

    Example:
        >>> pairs, found = all_pairs_tests([[1.0, 2.0], [2.0, 4.0], [4.0, 5.0]])
        >>> pairs.tolist(), [round(t, 3) for t in found.statistic.tolist()]
        ([[0, 1], [0, 2], [1, 2]], [-3.0, -inf, -3.0])
    """
    values = _conditions(alphas)
    pairs = torch.combinations(torch.arange(len(values)))
    return pairs, paired_test(values[pairs[:, 0]], values[pairs[:, 1]])


def _conditions(alphas: Tensor | Sequence[Any]) -> Tensor:
    values = numbers("alphas", alphas)
    if values.ndim != 2 or len(values) < 2:
        raise ValueError(
            "`alphas` must be [T, M], a row for each of at least two conditions and a column per model, "
            f"got {list(values.shape)}."
        )
    return values


def _t_test(
    x: Tensor, y: Tensor, values: Tensor, alternative: Alternative, equal_var: bool
) -> TTest:
    """Return the test of x against y; differences within the rounding error of `values` count as 0."""
    ways = get_args(Alternative)
    if alternative not in ways:
        raise ValueError(f"`alternative` must be one of {ways}, got {alternative!r}.")
    slack = ROUNDING * values.abs().nansum(-1)
    (n, mean, sd), (n2, mean2, sd2) = moments(x), moments(y)
    mean2 = mean.where((mean - mean2).abs() <= slack, mean2)
    sd, sd2 = (s.masked_fill(s <= slack, 0) for s in (sd, sd2))
    sides = [side.numpy() for side in (mean, sd, n, mean2, sd2, n2)]
    with np.errstate(divide="ignore", invalid="ignore"):  # too few models, or no spread
        found = scipy_stats().ttest_ind_from_stats(*sides, equal_var, alternative)
    t, p = (torch.as_tensor(value, dtype=torch.float64) for value in found)
    return TTest(t, p, bonferroni(p))
