"""Intervals that hold at every moment of a sequence, also where the moment was chosen after looking."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_fairprune.statistics._numbers import Counts, at_most, same_shape, whole

_HALVINGS = 60  # of an interval in [0, 1]


def confidence_sequence(
    successes: Counts, trials: Counts, level: float = 0.95
) -> tuple[Tensor, Tensor]:
    r"""Return an interval of a binomial share that holds after every trial at once.

    .. math:: \{p : \mathrm{B}(s + 1, n - s + 1) < p^s (1 - p)^{n - s} / \alpha\}

    Robbins, "Statistical Methods Related to the Law of the Iterated Logarithm" (Annals of Mathematical Statistics,
    1970): the ratio of the two sides, times alpha, is the likelihood of a mixture over that of p, a martingale under p,
    and exceeds 1 / alpha at any time with probability alpha at most (Ville). So whoever adds independent samples may stop
    whenever the interval pleases. After n samples it is wider than :func:`clopper_pearson` (by three quarters for 500, of which
    450 are right).

    The recalls of two classes differ for certain where their intervals, each at half of 1 - level, do not meet.

    The samples must be **new** ones of the same share. A fixed validation set that is evaluated again each epoch,
    with other weights, is neither: for that, see :func:`level_at_epoch`.

    Args:
        successes: after each number of trials, whole numbers, any shape.
        trials: whole numbers of the same shape; the interval of 0 trials is [0, 1].
        level: in (0, 1), of all moments together. For K classes at once use `1 - (1 - level) / K`.

    Returns:
        Lower and upper ends, float64, of the shape of `successes`.

    Raises:
        ValueError: If a number is not whole or out of range.

    Example:
        With all of n right the lower end is (alpha / (n + 1))^(1 / n).

        >>> low, high = confidence_sequence([10], [10])
        >>> round(low.item(), 4), round((0.05 / 11) ** (1 / 10), 4), high.item()
        (0.5831, 0.5831, 1.0)
    """
    right, n = whole("successes", successes), whole("trials", trials)
    same_shape(("successes", right), ("trials", n))
    at_most("successes", right, n)
    if not 0 < level < 1:
        raise ValueError(f"`level` must be in (0, 1), got {level}.")
    s, f = right.double(), (n - right).double()
    least = _log_beta(s, f) + math.log(1 - level)  # a share with a lower log-likelihood is outside

    def outside(p: Tensor) -> Tensor:
        return _log_likelihood(s, f, p) <= least

    # The likelihood rises up to the observed share and falls after it.
    peak = torch.where(n > 0, s / n, 0.5)
    ends = []
    for end in (0.0, 1.0):
        inside, out = peak, torch.full_like(peak, end)
        for _ in range(_HALVINGS):
            middle = (inside + out) / 2
            left = outside(middle)
            inside, out = torch.where(left, inside, middle), torch.where(left, middle, out)
        ends.append(out.where(outside(torch.full_like(peak, end)), torch.tensor(end).double()))
    return ends[0], ends[1]


def level_at_epoch(level: float, epoch: int) -> float:
    r"""Return the level at which the interval of one epoch must be taken so that those of all epochs hold at once.

    .. math:: 1 - 6 \alpha / (\pi^2 t^2)

    These errors sum to alpha over t = 1, 2, ...: the bound of a union, which asks for no independence. It is for one
    validation set that is evaluated after every epoch: at any epoch at which somebody stops, however it was chosen, the
    interval at this level (:func:`clopper_pearson`, :func:`loss_bounds`) holds for the model of that epoch.

    Not covered: a model that has learnt from the validation samples themselves. Quotas from validation recalls, and the
    choice among checkpoints, tell it a few numbers of them; the report of a test set has no such doubt.

    Args:
        level: of all epochs together, in (0, 1).
        epoch: t, counted from 1.

    Raises:
        ValueError: If one is out of range.

    Example:
        >>> round(level_at_epoch(0.95, 1), 4), round(level_at_epoch(0.95, 10), 5)
        (0.9696, 0.9997)
    """
    if not 0 < level < 1:
        raise ValueError(f"`level` must be in (0, 1), got {level}.")
    if epoch < 1:
        raise ValueError(f"`epoch` must be at least 1, got {epoch}.")
    return 1 - (1 - level) * 6 / (math.pi * epoch) ** 2


def _log_likelihood(s: Tensor, f: Tensor, p: Tensor) -> Tensor:
    return torch.xlogy(s, p) + torch.xlogy(f, 1 - p)


def _log_beta(s: Tensor, f: Tensor) -> Tensor:
    """Return log B(s + 1, f + 1)."""
    return torch.lgamma(s + 1) + torch.lgamma(f + 1) - torch.lgamma(s + f + 2)
