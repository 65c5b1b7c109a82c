"""Difficulty scores: what was observed of every sample during training, boiled down to one number each.

Every score maps a `Dynamics` to float32 [N]; higher = harder. Epochs in which a sample was not observed are left out
for that sample, and a sample that was never observed gets NaN.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from lightning_fairprune.dynamics import Dynamics

__all__ = [
    "aum",
    "confidence",
    "dynamic_uncertainty",
    "el2n",
    "entropy",
    "forgetting",
    "loss",
    "margin",
    "variability",
]


def el2n(dynamics: Dynamics, *, window: int | None = None) -> Tensor:
    """Return each sample's mean EL2N over the last `window` epochs in which it was observed."""
    values = dynamics.signal("el2n")
    if window is None:
        return values.nanmean(0)
    if not 1 <= window <= dynamics.num_epochs:
        raise ValueError(
            f"`window` must be between 1 and the {dynamics.num_epochs} recorded epochs, got {window}."
        )
    return _last(values, dynamics.observed, window).nanmean(0)


def forgetting(dynamics: Dynamics) -> Tensor:
    """Return how often each sample went from right to wrong; one that was never right gets E."""
    correct = dynamics.signal("correct")
    count = torch.zeros(dynamics.num_samples, device=correct.device)
    ever = torch.zeros_like(count, dtype=torch.bool)
    last = torch.zeros_like(ever)
    for now, seen in zip(correct, dynamics.observed, strict=True):
        count += seen & last & ~now
        last = torch.where(seen, now, last)
        ever |= last
    score = count.masked_fill(~ever, float(dynamics.num_epochs))
    return score.masked_fill(~dynamics.observed.any(0), torch.nan)


def dynamic_uncertainty(dynamics: Dynamics, window: int = 10) -> Tensor:
    """Return the standard deviation of `p_true` within `window` epochs, averaged over all windows."""
    if not 2 <= window <= dynamics.num_epochs:
        raise ValueError(
            f"`window` must be between 2 and the {dynamics.num_epochs} recorded epochs, got {window}."
        )
    p = dynamics.signal("p_true")
    total = torch.zeros(dynamics.num_samples, device=p.device)
    windows = torch.zeros_like(total)
    for start in range(dynamics.num_epochs - window + 1):
        stop = start + window
        count = dynamics.observed[start:stop].sum(0)
        squares = (p[start:stop] - p[start:stop].nanmean(0)).square().nansum(0)
        valid = count >= 2
        total += torch.where(valid, (squares / (count - 1)).sqrt(), 0.0)
        windows += valid
    return total / windows


def aum(dynamics: Dynamics) -> Tensor:
    """Return minus each sample's mean margin."""
    return -dynamics.signal("margin").nanmean(0)


def confidence(dynamics: Dynamics) -> Tensor:
    """Return minus the mean probability of each sample's true class."""
    return -dynamics.signal("p_true").nanmean(0)


def variability(dynamics: Dynamics) -> Tensor:
    """Return the standard deviation of the probability of each sample's true class over the epochs."""
    p = dynamics.signal("p_true")
    return (p - p.nanmean(0)).square().nanmean(0).sqrt()


def loss(dynamics: Dynamics) -> Tensor:
    """Return each sample's mean cross entropy."""
    return dynamics.signal("loss").nanmean(0)


def margin(dynamics: Dynamics) -> Tensor:
    """Return minus each sample's margin in the last epoch in which it was observed."""
    return -_last(dynamics.signal("margin"), dynamics.observed, 1).nanmean(0)


def entropy(dynamics: Dynamics) -> Tensor:
    """Return the mean entropy of each sample's prediction."""
    return dynamics.signal("entropy").nanmean(0)


def _last(values: Tensor, observed: Tensor, window: int) -> Tensor:
    """Return the values with NaN in all but each sample's last `window` observed epochs."""
    seen_from_here = observed.flip(0).cumsum(0).flip(0)
    return values.masked_fill(seen_from_here > window, torch.nan)
