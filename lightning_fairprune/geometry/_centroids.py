"""Distance to the mean of a class or of a cluster."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_fairprune.geometry._arguments import checked_features, checked_target, integer
from lightning_fairprune.geometry.clusters import lloyd, means, parts


def prototype_distance(features: Tensor, target: Tensor) -> Tensor:
    r"""Return how far each sample is from the mean of its class.

    :math:`\|x_i - \mu_{y_i}\|_2`, the supervised form of the prototype score of Sorscher et al., "Beyond neural
    scaling laws" (NeurIPS 2022, arXiv 2206.14486), called SSPY in the code published with DRoP. Means and distances
    are computed as differences in float64.

    Args:
        features: Float [N, D], not normalised here.
        target: Integer [N], the class of each sample; -1 is in no class.

    Returns:
        Distances >= 0, float32 [N], NaN for target -1.

    Example:
        The mean of class 0 is (1, 1).

        >>> features = torch.tensor([[1.0, 3.0], [1.0, -1.0], [4.0, 5.0]])
        >>> prototype_distance(features, torch.tensor([0, 0, 1]))
        tensor([2., 2., 0.])
    """
    features = checked_features(features)
    target = checked_target(target, features)
    num_classes = max(1, int(target.max()) + 1) if len(target) else 1
    mean = means(features, target, num_classes)[0]
    score = torch.full((len(features),), torch.nan, device=features.device)
    for part in parts(len(features), features.shape[1]):
        own = target[part]
        difference = features[part].double() - mean[own]  # -1 is any row: masked below
        score[part] = difference.square_().sum(1).sqrt_().float().masked_fill_(own < 0, torch.nan)
    return score


def k_means_distance(features: Tensor, num_clusters: int, *, seed: int = 0) -> Tensor:
    r"""Return the cosine distance of each sample to the nearest of `num_clusters` k-means centroids.

    :math:`\min_k 1 - \cos(x_i, c_k)`, the self-supervised prototype score (SSP) of Sorscher et al., "Beyond neural
    scaling laws" (NeurIPS 2022, arXiv 2206.14486), there with features of SwAV. It needs no labels. The features are
    L2-normalised first, so that k-means clusters directions too.

    k-means++ (Arthur & Vassilvitskii, SODA 2007) is followed by Lloyd's rounds until no sample changes its cluster, at most
    300. An empty cluster restarts at the sample farthest from its centroid. Distances are computed in blocks; memory is
    one copy of the features.

    Args:
        features: Float [N, D]. A sample whose features are all 0 has no direction and is at distance 1.
        num_clusters: Number of clusters, in [1, N].
        seed: Seed of the first centroids; the same seed gives the same scores on the same machine.

    Returns:
        Distances in [0, 2], float32 [N].

    Example:
        The directions (0.8, 0.6) and (0.8, -0.6) form a cluster around (1, 0).

        >>> features = torch.tensor([[8.0, 6.0], [4.0, -3.0], [-5.0, 0.0]])
        >>> k_means_distance(features, 2)
        tensor([0.2000, 0.2000, 0.0000])
    """
    features = checked_features(features)
    clusters, seed = integer("num_clusters", num_clusters), integer("seed", seed)
    if not 1 <= clusters <= len(features):
        raise ValueError(
            f"`num_clusters` must be between 1 and the {len(features)} samples, got {clusters}."
        )
    n, d = features.shape
    with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
        mean = torch.zeros(d, dtype=torch.float64, device=features.device)
        for part in parts(n, d):
            mean += _direction(features[part]).sum(0) / n
        # Moved by their mean, so that directions close to each other keep their digits.
        moved = torch.empty_like(features)
        for part in parts(n, d):
            moved[part] = _direction(features[part]).sub_(mean)
        centroid = lloyd(moved, _plus_plus(moved, clusters, seed))[0] + mean
        # Not a direction: the centroid of samples that are 0, but for rounding.
        centroid = F.normalize(centroid, dim=1, eps=1e-6)
        near = [
            (_direction(features[part]) @ centroid.T).amax(1) for part in parts(n, clusters + d)
        ]
    return torch.cat(near).neg_().add_(1).clamp_(0, 2).float()


def _direction(features: Tensor) -> Tensor:
    """Return the features as float64 vectors of length 1, or 0 where all are 0."""
    # By the largest first: the squares of what is left neither overflow nor vanish.
    largest = features.abs().amax(1, keepdim=True).clamp_(min=torch.finfo(features.dtype).tiny)
    return F.normalize(features.double() / largest, dim=1)


def _plus_plus(features: Tensor, clusters: int, seed: int) -> Tensor:
    """Draw the first centroids: each next sample with probability as its squared distance."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.rand(clusters, generator=generator, dtype=torch.float64).tolist()
    n = len(features)
    square = features.square().sum(1)
    distance = torch.full_like(square, torch.inf)
    chosen: list[int] = []
    for share in draw:
        place = int(share * n)  # the first, or if there are fewer different samples than clusters
        if chosen:
            total = distance.double().cumsum(0)
            if float(total[-1]) > 0:
                place = int(torch.searchsorted(total, total[-1] * share, right=True))
        chosen.append(min(place, n - 1))
        last = features[chosen[-1]]
        other = (features @ last).mul_(-2).add_(square).add_(last.square().sum()).clamp_(min=0)
        distance = distance.minimum(other)
        distance[chosen[-1]] = 0
    return features[chosen].double()
