"""Classes that take more than their share of the data and do not answer to it.

A recall that stays low may need more samples, or none may help: wrong labels, or a class at its ceiling. Only a change of
its share tells them apart. So the first such class is held at its proportional share; if its recall falls, it gets back
what the rule gives it, for the rest of the fit; if its recall stays, it is frozen there.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import takewhile
from typing import Protocol

import torch
from torch import Tensor

ESTIMATES = 2  # above the share without an answer
TRIAL = 2  # held at the share, at most, until that is decided
NOISE = 2.0  # standard errors that its recall is below the others'
POWER = 2.0  # standard errors of a change that its fall would be if data helped
ON_TRIAL, FROZEN, ANSWERED = 1, 2, 3
STAYS = 3 / 4  # of that fall, at most, of a class that data does not help
HELP = 1 / 4  # where data helps, the error falls at least like samples ** -HELP


class EstimateLike(Protocol):
    """The part of an estimate of the quotas that is read here."""

    @property
    def recall(self) -> Tensor | None:
        """The recalls, float [K]."""

    @property
    def quota(self) -> Tensor | None:
        """The quotas that followed, int64 [K]."""

    @property
    def held(self) -> Tensor | None:
        """Which classes were held at their proportional share, uint8 [K]."""


def held(
    history: Sequence[EstimateLike],
    recall: Tensor,
    support: Tensor,
    sizes: Tensor,
) -> Tensor:
    """Return which classes to hold at their proportional share, from all estimates before and the recalls now.

    A class is tried if its recall, after two estimates above its share, is below the mean of the other classes
    by more than two standard errors, has risen by less than one, and would fall at its proportional share by more
    than two standard errors of a change if data helped: if its error grew by the factor share ** (1/4). One
    class is tried at a time, that with the largest share. It has answered, and is not tried again, if its mean recall
    has fallen by that or more; after two estimates on trial it is frozen if the fall is less than three quarters of
    that, and else free. The standard error of a change is estimated from the changes of all classes between estimates, so that it
    is also that of training.

    Args:
        history: the estimates before this one, of the fit.
        recall: float [K], in [0, 1] or NaN.
        support: float or int [K], samples of one validation behind each recall.
        sizes: int64 [K], as how many samples each class counts.

    Returns:
        uint8 [K]: 0 for a class that is free, `ON_TRIAL`, `FROZEN` or `ANSWERED`, which is free
        for the rest of the fit.

    Example:
        Class 0 gets twice its share of 20 + 20 + 20 samples, to no avail.

        >>> from lightning_fairprune.selection.decision import Estimate
        >>> stays = torch.tensor([0.5, 0.9, 0.9]), torch.tensor([12, 3, 3])
        >>> held(
        ...     [Estimate(i, *stays) for i in (2, 4)],
        ...     stays[0],
        ...     torch.full((3,), 100),
        ...     torch.full((3,), 20),
        ... )
        tensor([1, 0, 0], dtype=torch.uint8)
    """
    nothing = torch.zeros(len(sizes), dtype=torch.uint8)
    recall = recall.double()
    # Groups may be found, or a new one met, in the course of a fit: earlier estimates are of others.
    run = list(takewhile(partial(_is_of, len(sizes)), reversed(history)))[::-1]
    if len(run) < ESTIMATES:
        return nothing
    recalls = torch.stack([e.recall.double() for e in run if e.recall is not None] + [recall])
    quotas = torch.stack([e.quota.double() for e in run if e.quota is not None])
    before = torch.stack([nothing if e.held is None else e.held for e in run])
    shares = quotas * sizes.sum() / (quotas.sum(1, keepdim=True) * sizes.clamp(min=1))

    step = _noise(recalls) * (recall * (1 - recall)).sqrt()
    now = _decided(before, recalls, shares)
    if bool((now == ON_TRIAL).any()):
        return now
    error = (recall * (1 - recall) / support.clamp(min=1)).sqrt()
    known = ~recall.isnan() & (sizes > 0)
    others = (recall[known].sum() - recall) / (known.sum() - 1).clamp(min=1)
    share = shares[-ESTIMATES:].mean(0)
    stalls = (shares[-ESTIMATES:] > 1).all(0) & known & (now == 0)
    stalls &= others - recall > NOISE * error
    stalls &= recall - recalls[-ESTIMATES] < error
    stalls &= (1 - recall) * (share**HELP - 1) > POWER * step
    if bool(stalls.any()):
        now[int(shares[-1].masked_fill(~stalls, -1).argmax())] = ON_TRIAL
    return now


def _is_of(num_classes: int, estimate: EstimateLike) -> bool:
    recall, quota = estimate.recall, estimate.quota
    return recall is not None and quota is not None and len(recall) == len(quota) == num_classes


def _noise(recalls: Tensor) -> float:
    """The standard deviation of a change of recall between two estimates, over sqrt(r (1 - r)): the median over all."""
    changes, middle = recalls.diff(dim=0), (recalls[1:] + recalls[:-1]) / 2
    changes = changes - changes.nanmean(1, keepdim=True)
    scaled = changes.abs() / (middle * (1 - middle)).clamp(min=1e-4).sqrt()
    return 1.4826 * float(scaled[-2 * ESTIMATES :].nanmedian())


def _decided(before: Tensor, recalls: Tensor, shares: Tensor) -> Tensor:
    """What becomes of the classes held until now, uint8 [K]; others stay what they are."""
    held = _is_held(before)
    count = held.flip(0).int().cumprod(0).sum(0)  # estimates of the trial until now
    first = (len(before) - count).clamp(min=ESTIMATES)[None]  # the one that held the class
    under = torch.arange(len(recalls))[:, None] > first
    plateau = (recalls.gather(0, first)[0] + recalls.gather(0, first - 1)[0]) / 2
    share = (shares.gather(0, first - 1)[0] + shares.gather(0, first - 2)[0]) / 2
    count = count.clamp(min=1)
    fall = plateau - recalls.where(under, 0.0).sum(0) / count
    expected = (1 - plateau) * (share**HELP - 1)
    ends = torch.where(fall < STAYS * expected, FROZEN, 0)
    ends = torch.where(count < TRIAL, ON_TRIAL, ends)
    now = torch.where(before[-1] == FROZEN, FROZEN, ends)
    now = torch.where(fall < expected, now, ANSWERED)
    return torch.where(held[-1], now, before[-1]).to(torch.uint8)


def _is_held(state: Tensor) -> Tensor:
    return (state == ON_TRIAL) | (state == FROZEN)


def frozen(history: Sequence[EstimateLike]) -> list[int]:
    """Return the classes that more data did not help, as of the last estimate."""
    last = history[-1].held if history else None
    return [] if last is None else (last == FROZEN).nonzero().flatten().tolist()


def counted(sizes: Tensor, repeat: int) -> Tensor:
    """Return as how large each class counts: as it can be drawn, but at most as the largest."""
    return (sizes * repeat).clamp(max=int(sizes.max()))


def caps(held: Tensor, sizes: Tensor, budget: int, repeat: int = 1) -> Tensor:
    """Return `repeat` times each class, and of a held one its proportional share of the budget, rounded up."""
    most, sizes = sizes * repeat, counted(sizes, repeat)
    total = max(int(sizes.sum()), 1)
    return torch.where(_is_held(held), (sizes * budget + total - 1) // total, most)


def in_words(found: Sequence[int], names: Sequence[str] | None, kind: str) -> str:
    """Return the warning of classes, or groups, that more data does not help."""
    said = ", ".join(f"{k}" if names is None else f"{k} ({names[k]})" for k in found)
    which = kind if len(found) > 1 else {"classes": "class", "groups": "group"}[kind]
    return f"more data does not help {which} {said}: look at {'their' if len(found) > 1 else 'its'} labels."
