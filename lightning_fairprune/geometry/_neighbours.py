"""Distance to the nearest other samples."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_fairprune.geometry._arguments import (
    checked_features,
    checked_target,
    class_members,
    integer,
)

_TABLE = 2**22  # most distances at a time: 32 MB


def neighbour_distance(features: Tensor, k: int = 10, *, target: Tensor | None = None) -> Tensor:
    r"""Return the mean distance of each sample to its `k` nearest other samples.

    :math:`\frac1k \sum_{j \in \text{kNN}(i)} \|x_i - x_j\|_2`: the inverse of a local density, high where samples are
    sparse. The neighbours are exact, in time quadratic in the number of samples, or in the sizes of the classes of `target`.
    Memory is not quadratic: distances are computed in blocks of at most 32 MB, in float64, next to one float64 copy of the
    features (of a class).

    Args:
        features: Float [N, D].
        k: Number of neighbours, at least 1 and less than N, or less than the size of every class.
        target: Integer [N], the class of each sample: its neighbours are of its own class; -1 is in no class. None
            takes neighbours from all samples.

    Returns:
        Distances >= 0, float32 [N], NaN for target -1.

    Example:
        >>> line = torch.tensor([[0.0], [1.0], [3.0], [10.0]])
        >>> neighbour_distance(line, k=2)
        tensor([2.0000, 1.5000, 2.5000, 8.0000])
        >>> neighbour_distance(line, k=1, target=torch.tensor([0, 1, 0, 1]))
        tensor([3., 9., 3., 9.])
    """
    features = checked_features(features)
    k = integer("k", k)
    score = torch.full((len(features),), torch.nan, device=features.device)
    if target is None:
        groups: tuple[Tensor, ...] = (torch.arange(len(features), device=features.device),)
    else:
        groups = class_members(checked_target(target, features))
    for label, member in enumerate(groups):
        if len(member) and not 1 <= k < len(member):
            where = "samples" if target is None else f"samples of class {label}"
            raise ValueError(
                f"`k` must be at least 1 and less than the {len(member)} {where}, got {k}."
            )
    with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
        for member in groups:
            if len(member):
                score[member] = _mean_distance(features[member].double(), k).float()
    return score


def _mean_distance(x: Tensor, k: int) -> Tensor:
    x -= x.mean(0)  # of this function's own copy: products cancel less near 0
    largest = x.abs().max().clamp_(min=1e-300)
    x /= largest
    square = x.square().sum(1)
    parts = []
    step = max(1, _TABLE // max(len(x), k * x.shape[1]))
    for start in range(0, len(x), step):
        part = slice(start, start + step)
        table = torch.addmm(square, x[part], x.T, alpha=-2)  # + |x_i|^2, the same in a row
        own = torch.arange(len(table), device=x.device)
        table[own, own + start] = torch.inf
        near = table.topk(k, largest=False, sorted=False).indices
        # Who is near comes from the products; how near, from differences.
        difference = x[part, None] - x[near]
        parts.append(difference.square_().sum(2).sqrt_().mean(1))
    return torch.cat(parts) * largest
