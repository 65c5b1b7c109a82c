"""Which samples of a class a selection chooses from: without the hardest ones, and a random part of the others."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_fairprune.selection._order import lowest

Key = tuple[Callable[[slice], Tensor], int]


def check_candidates(keep: str, cutoff: float, pool: float) -> None:
    """Raise a ValueError if a cut-off or pool is out of range, or has no effect on what is kept."""
    if not 0 <= cutoff < 1:
        raise ValueError(
            f"`cutoff` must be in [0, 1), the fraction of each class that is too hard to keep, got {cutoff}."
        )
    if not 0 < pool <= 1:
        raise ValueError(
            f"`pool` must be in (0, 1], the random part of each class to choose from, got {pool}."
        )
    if cutoff and keep not in ("hard", "stratified"):
        raise ValueError(
            f"`cutoff` has no effect with keep={keep!r}; pass keep='hard' or 'stratified'."
        )
    if pool < 1 and keep == "random":
        raise ValueError(
            "`pool` has no effect with keep='random'; pass keep='hard', 'easy' or 'stratified'."
        )


def candidates(
    group: Tensor, quota: Tensor, hardest: Key, draw: Key, cutoff: float, pool: float
) -> Tensor:
    """Return the groups, and len(quota) for samples that the selection must not choose.

    Both limits leave a group as many samples as its quota. Then a larger quota chooses from more samples, but
    only once it keeps all of the former, so that selections nest.
    """
    out = len(quota)
    size = torch.bincount(group, minlength=out + 1)[:out]
    if cutoff:
        cut = (size.double() * cutoff).round().long().minimum(size - quota)
        group = torch.where(lowest(group, *hardest, cut), out, group)
        size = size - cut
    if pool < 1:
        part = (size.double() * pool).round().long().maximum(quota)
        group = torch.where(lowest(group, *draw, part), group, out)
    return group


def order_in_words(keep: str, cutoff: float, pool: float) -> str:
    """Return the order inside a class for records, such as ``"hard, cutoff 0.1"``."""
    limits = [f"cutoff {cutoff:g}"] if cutoff else []
    limits += [f"pool {pool:g}"] if pool < 1 else []
    return ", ".join([keep, *limits])
