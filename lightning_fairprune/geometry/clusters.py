"""Rounds of k-means, in blocks of samples."""

from __future__ import annotations

import torch
from torch import Tensor

_TABLE = 2**20  # most numbers in a table of samples x centroids at a time: 4 MB
_ROUNDS = 300  # most rounds of Lloyd's algorithm


def lloyd(features: Tensor, centroid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return k-means centroids float64 [K, D], clusters int64 [N] and squared distances [N]."""
    cluster, distance = _assign(features, centroid)
    for _ in range(_ROUNDS):
        centroid, size = means(features, cluster, len(centroid))
        empty = (size == 0).nonzero().flatten()
        if len(empty):
            # The farthest samples, each from a cluster that keeps another. Ties by index.
            far = distance.masked_fill(size[cluster] < 2, -1.0).argsort(
                descending=True, stable=True
            )
            centroid[empty] = features[far[: len(empty)]].double()
        before = cluster
        cluster, distance = _assign(features, centroid)
        if torch.equal(cluster, before):
            break
    return centroid, cluster, distance


def _assign(features: Tensor, centroid: Tensor) -> tuple[Tensor, Tensor]:
    """Return the nearest centroid of each sample, the lowest of equals, and its squared distance."""
    near = [
        _squared(features[part], centroid).min(1)
        for part in parts(len(features), len(centroid) + features.shape[1])
    ]
    return torch.cat([found.indices for found in near]), torch.cat([found.values for found in near])


def _squared(features: Tensor, centroid: Tensor) -> Tensor:
    """Return squared distances [N, K] by a product: the features are to lie around 0."""
    centroid = centroid.to(features.dtype)
    square = features.square().sum(1)[:, None] + centroid.square().sum(1)
    return torch.addmm(square, features, centroid.T, alpha=-2).clamp_(min=0)


def means(features: Tensor, group: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the mean of each group, float64 [K, D], and the sizes; group -1 is left out."""
    d = features.shape[1]
    total = torch.zeros(count + 1, d, dtype=torch.float64, device=features.device)
    for part in parts(len(features), d):
        total.index_add_(0, group[part] + 1, features[part].double())
    size = torch.bincount(group + 1, minlength=count + 1)[1:]
    return total[1:] / size.clamp(min=1)[:, None], size


def parts(rows: int, width: int) -> list[slice]:
    """Cut rows so that a table of this width stays small."""
    step = max(1, _TABLE // max(1, width))
    return [slice(start, start + step) for start in range(0, rows, step)] or [slice(0, 0)]
