"""Which samples train, validate and test: stratified cuts and long-tailed training sets."""

from __future__ import annotations

import torch
from torch import Tensor


def stratified(labels: Tensor, fraction: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Returns two disjoint sets of samples, the first with a fraction of every class.

    Each class gives ``floor(fraction n_k)`` samples, drawn at random, but at least 1 and at most all
    but 1 where it has 2 or more, so that both sets can tell its recall.

    Args:
        labels: int64 [N].
        fraction: share of the first set, in (0, 1), else ValueError.
        seed: of the draw.

    Returns:
        Indices of the first and of the second set, int64, sorted.

    Example:
        >>> first, second = stratified(torch.tensor([0, 0, 0, 0, 1, 1]), 0.5)
        >>> len(first), len(second)
        (3, 3)
    """
    if not 0 < fraction < 1:
        raise ValueError(f"`fraction` must be in (0, 1), got {fraction}.")
    sizes = torch.bincount(labels)
    first = (sizes * fraction + 1e-9).floor().long()
    first = torch.minimum(first.clamp(min=1), (sizes - 1).clamp(min=0))
    chosen = _ranks(labels, seed) < first[labels]
    return chosen.nonzero().flatten(), (~chosen).nonzero().flatten()


def long_tailed_sizes(sizes: Tensor, imbalance: float) -> Tensor:
    r"""Returns how many samples of each class a long-tailed training set has.

    .. math:: n_k = \lfloor n_{max} \cdot \rho^{-k / (K - 1)} \rfloor

    with imbalance factor ρ, the exponential profile of Cui et al. (2019, CVPR), used for CIFAR by
    Cao et al. (2019, NeurIPS). No class gets more than it has, or fewer than 1.

    Args:
        sizes: of the full set, int64 [K], as is what is returned.
        imbalance: ρ, the largest class by the smallest, at least 1, else ValueError.

    Example:
        >>> long_tailed_sizes(torch.tensor([5000, 5000, 5000]), 100)
        tensor([5000,  500,   50])
    """
    if not imbalance >= 1:
        raise ValueError(
            f"`imbalance` must be at least 1, the largest class by the smallest, got {imbalance}."
        )
    k = torch.arange(len(sizes), dtype=torch.float64)
    wanted = sizes.max() * imbalance ** (-k / max(len(sizes) - 1, 1))
    # A power that should be whole may come out a rounding error below.
    return torch.minimum((wanted + 1e-6).floor().long().clamp(min=1), sizes)


def long_tailed(labels: Tensor, imbalance: float, seed: int = 0) -> Tensor:
    """Returns the samples of a long-tailed training set, drawn at random inside each class.

    Args:
        labels: int64 [N].
        imbalance: largest class by the smallest, at least 1; see `long_tailed_sizes`.
        seed: of the draw. With the same seed, more imbalance takes samples away and adds none.

    Returns:
        Indices, int64, sorted.

    Example:
        >>> labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
        >>> labels[long_tailed(labels, 4)]
        tensor([0, 0, 0, 0, 1])
    """
    sizes = long_tailed_sizes(torch.bincount(labels), imbalance)
    return (_ranks(labels, seed) < sizes[labels]).nonzero().flatten()


def _ranks(labels: Tensor, seed: int) -> Tensor:
    """Returns the place of every sample in a random order of its class, int64 [N]."""
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    order = shuffled[labels[shuffled].argsort(stable=True)]
    sizes = torch.bincount(labels)
    starts = sizes.cumsum(0) - sizes
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(labels)) - starts[labels[order]]
    return ranks
