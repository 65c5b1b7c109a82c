"""The intensification ratio of each model, its interval over models, and the line through all points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_fairprune import recalls
from lightning_fairprune.statistics._numbers import (
    ROUNDING,
    accuracies,
    fractions,
    moments,
    numbers,
    scipy_stats,
)


@dataclass(frozen=True, slots=True)
class Summary:
    """Mean over models and its t interval.

    Args:
        mean: mean over the models; NaN without one.
        sd: unbiased standard deviation; NaN below two models, as are `low` and `high`.
        low: lower end of the confidence interval of the mean.
        high: upper end.
        label: ">" if the interval lies above the value compared with, "<" if below, "?" otherwise.
        num_models: models whose value is not NaN.
    """

    mean: float
    sd: float
    low: float
    high: float
    label: Literal["<", ">", "?"]
    num_models: int


def intensification_ratio(
    recall_before: Tensor | Sequence[Any],
    recall_after: Tensor | Sequence[Any],
    *,
    accuracy_before: Tensor | Sequence[Any] | float | None = None,
    accuracy_after: Tensor | Sequence[Any] | float | None = None,
) -> Tensor:
    r"""Return how much wider the class recalls lie around the accuracy after pruning than before.

    .. math:: \alpha = \sum_c \bar B^c \bar B_t^c / \sum_c (\bar B^c)^2, \quad \bar B^c = (R^c - A) / A

    The slope without intercept of the normalised recall balances after pruning on those before: Good et al.,
    "Recall Distortion in Neural Network Pruning and the Undecayed Pruning Algorithm" (NeurIPS 2022). Above 1
    the differences between classes intensify. A class with balance 0 before has weight 0. The ratio is NaN where all
    balances before are 0 or an accuracy is 0, which the paper does not discuss.

    Args:
        recall_before: recalls of the unpruned models in [0, 1], [..., K]. A class that is NaN here or in
            `recall_after` is left out of both.
        recall_after: recalls after pruning, [..., K].
        accuracy_before: accuracies of the unpruned models, [...]; None: the mean recall.
        accuracy_after: accuracies after pruning, [...]; None: the mean recall.

    Returns:
        alpha, float64, [...].

    Raises:
        ValueError: If the shapes do not fit or a value is infinite.

    Example:
        The paper's: balances of +-1/8 become +-1/6.

        >>> intensification_ratio([0.9, 0.7], [0.7, 0.5])
        tensor(1.3333, dtype=torch.float64)
    """
    before, after, first, second = _arguments(
        recall_before, recall_after, accuracy_before, accuracy_after
    )
    return recalls.intensification(after, before, second, first)


def intensification_line(
    recall_before: Tensor | Sequence[Any],
    recall_after: Tensor | Sequence[Any],
    *,
    accuracy_before: Tensor | Sequence[Any] | float | None = None,
    accuracy_after: Tensor | Sequence[Any] | float | None = None,
) -> tuple[float, float]:
    """Return slope and r^2 of all (model, class) points together.

    The slope of the line through the origin and the squared Pearson correlation of the normalised balances: the
    legend of Good et al., Figure 5. Unlike in the mean of the models' ratios, a model with large balances has more
    weight.

    Arguments and errors are those of `intensification_ratio`, with recalls [M, K] and accuracies [M]; slope and
    r^2 are NaN where undefined.

    Example:
        Balances of +-1/8 and +-1/4 double.

        >>> slope, r2 = intensification_line([[0.9, 0.7], [0.5, 0.3]], [[0.5, 0.3], [0.6, 0.2]])
        >>> round(slope, 3), round(r2, 3)
        (2.0, 1.0)
    """
    before, after, first, second = _arguments(
        recall_before, recall_after, accuracy_before, accuracy_after
    )
    known = ~(before.isnan() | after.isnan())
    x = recalls.normalised_balance(before.where(known, torch.nan), first)
    y = recalls.normalised_balance(after.where(known, torch.nan), second)
    known = ~(x.isnan() | y.isnan())  # an accuracy of 0 leaves out a model
    x, y = x[known], y[known]
    x, y = x.where(x.abs() > ROUNDING, 0), y.where(y.abs() > ROUNDING, 0)
    u, v = x - x.mean(), y - y.mean()
    r2 = (u @ v).square() / ((u @ u) * (v @ v))
    return float((x @ y) / (x @ x)), float(r2.clamp_max(1))


def summarise(
    alpha: Tensor | Sequence[float], level: float = 0.99, *, against: float = 1.0
) -> Summary:
    r"""Return mean, standard deviation and t interval over models, and its side of `against`.

    The interval is `mean +- t_{(1 + level) / 2, M - 1} sd / sqrt(M)`. With the defaults the labels are those
    of Good et al., Figures 1 to 4, where 99 % is 95 % for five pruning ratios (Bonferroni).

    Args:
        alpha: one value per model, [M]; NaN is left out.
        level: confidence level in (0, 1).
        against: the value to compare with; 1 = neither wider nor narrower.

    Returns:
        The summary; below two models its label is "?".

    Raises:
        ValueError: If `alpha` is not [M] or `level` is not in (0, 1).

    Example:
        Mean 1.5, deviation .1; t is 4.303, so the interval is 1.5 +- .248.

        >>> found = summarise([1.4, 1.5, 1.6], level=0.95)
        >>> round(found.low, 3), round(found.high, 3), found.label
        (1.252, 1.748, '>')
    """
    values = numbers("alpha", alpha)
    if values.ndim != 1:
        raise ValueError(f"`alpha` must be [M], one value per model, got {list(values.shape)}.")
    if not 0 < level < 1:
        raise ValueError(f"`level` must be in (0, 1), got {level}.")
    n, mean, sd = moments(values)
    reach = half_widths(values, level)
    low, high = float(mean - reach), float(mean + reach)
    slack = ROUNDING * max(abs(against), 1.0)
    below: Literal["<", "?"] = "<" if high < against - slack else "?"
    label: Literal["<", ">", "?"] = ">" if low > against + slack else below
    return Summary(float(mean), float(sd), low, high, label, int(n))


def half_widths(values: Tensor | Sequence[Any], level: float = 0.95) -> Tensor:
    """Return half the width of the t interval of the mean over models.

    Args:
        values: [M, ...]; NaN is left out.
        level: of the confidence interval, in (0, 1).

    Returns:
        float64 [...]; NaN below two models.

    Raises:
        ValueError: If there is no axis of models or `level` is out of range.

    Example:
        Standard error 1, and t is 12.706 with one degree of freedom.

        >>> half_widths([[3.0, 1.0], [5.0, float("nan")]])
        tensor([12.7062,     nan], dtype=torch.float64)
    """
    found = numbers("values", values)
    if not found.ndim:
        raise ValueError("`values` must be [M, ...], one value per model, got a single number.")
    if not 0 < level < 1:
        raise ValueError(f"`level` must be in (0, 1), got {level}.")
    n, _, sd = moments(found.movedim(0, -1))
    t = scipy_stats().t.ppf((1 + level) / 2, (n - 1).numpy())
    return torch.as_tensor(t, dtype=torch.float64) * sd / n.sqrt()


def _arguments(
    recall_before: Tensor | Sequence[Any],
    recall_after: Tensor | Sequence[Any],
    accuracy_before: Tensor | Sequence[Any] | float | None,
    accuracy_after: Tensor | Sequence[Any] | float | None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Return the four as float64, or raise."""
    before = fractions("recall_before", recall_before)
    after = fractions("recall_after", recall_after)
    if before.shape != after.shape or not before.ndim:
        raise ValueError(
            "`recall_before` and `recall_after` must have one shape [..., K], got "
            f"{list(before.shape)} and {list(after.shape)}."
        )
    first = accuracies("accuracy_before", accuracy_before, before)
    return before, after, first, accuracies("accuracy_after", accuracy_after, after)
