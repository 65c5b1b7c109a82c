"""Samples with their logits, and what offsets make of them; each rank may hold a part."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Reduce = Callable[[Tensor], Tensor]

_TILE = 1 << 18  # logits that are read at once: they stay in the cache of a processor


class Samples:
    """Logits of samples without those of their own classes, which are kept apart.

    So a prediction is right if its own logit is above all others, and a maximum costs a quarter of an argmax. Where both
    are equal the order decides, as it does for `argmax`: of equal logits the first counts as highest.

    Args:
        logits: [N, K] on any device; half precision is read as float32.
        target: int64 [N], in [0, K).
        group: int64 [N], in [0, G); None to count no groups.
        num_groups: G.
        reduce: sums a tensor over the ranks.
    """

    def __init__(
        self,
        logits: Tensor,
        target: Tensor,
        group: Tensor | None = None,
        num_groups: int = 0,
        reduce: Reduce = torch.clone,
    ) -> None:
        at = target.unsqueeze(1)
        dtype = torch.promote_types(logits.dtype, torch.float32)
        self._rivals = logits.detach().to(dtype, copy=True).scatter_(1, at, -torch.inf)
        self._own = logits.detach().gather(1, at).squeeze(1).to(dtype)
        self._target, self._group, self._reduce = target, group, reduce
        self.num_classes, self.num_groups = logits.shape[1], num_groups
        self.support = reduce(self._count(torch.ones_like(target)))  # of classes, then of groups

    def _count(self, value: Tensor) -> Tensor:
        count = value.new_zeros(self.num_classes + self.num_groups)
        count.index_add_(0, self._target, value)
        if self._group is not None:
            count.index_add_(0, self._group + self.num_classes, value)
        return count

    def _best_rival(self, offsets: Tensor) -> Tensor:
        if not len(self._own):
            return self._own
        on_cpu = offsets.device.type == "cpu"
        rows = max(1, _TILE // self.num_classes) if on_cpu else len(self._own)
        return torch.cat([tile.add(offsets).amax(1) for tile in torch.split(self._rivals, rows)])

    def right(self, offsets: Tensor) -> Tensor:
        """Returns whether each sample is predicted right under offsets [K], bool [N]."""
        offsets = offsets.to(self._rivals)
        own, best = self._own + offsets[self._target], self._best_rival(offsets)
        right = own > best
        tied = (own == best).nonzero().squeeze(1)
        if len(tied):
            first = (self._rivals[tied] + offsets).argmax(1)
            right[tied] = self._target[tied] < first
        return right

    def recalls(self, offsets: Tensor) -> Tensor:
        """Returns the recalls of the classes and then of the groups, float64 [K + G]; NaN without a sample."""
        right = self._reduce(self._count(self.right(offsets).long()))
        return right.double() / self.support

    def distance(self, offsets: Tensor) -> Tensor:
        """Returns the mean distance between the own logit and the best rival, a number in units of the logits."""
        own = self._own + offsets.to(self._own)[self._target]
        apart = (own - self._best_rival(offsets.to(self._own))).abs()
        known = apart.isfinite()  # infinite where all other classes are closed
        total = torch.stack([apart.where(known, 0.0).double().sum(), known.double().sum()])
        total = self._reduce(total)
        return total[0] / total[1].clamp(min=1)

    def all_finite(self) -> bool:
        """Whether the highest logit of every sample is finite."""
        top = torch.maximum(self._own, self._best_rival(self._own.new_zeros(self.num_classes)))
        return not bool(self._reduce((~top.isfinite()).sum()))

    def shares(self) -> Tensor:
        """Returns the part of each group that is of each class, float64 [K, G], 0 for an empty group."""
        cells = self.support.new_zeros(self.num_classes * self.num_groups)
        if self._group is not None:
            at = self._target * self.num_groups + self._group
            cells.index_add_(0, at, torch.ones_like(at))
        cells = self._reduce(cells).reshape(self.num_classes, self.num_groups)
        return cells.double() / cells.sum(0).clamp(min=1)

    def calibrated(self, prior: Tensor, steps: int) -> Tensor:
        """Returns the offsets under which the mean probability of each class is nearly its `prior`, float64 [K].

        Samples weigh as if classes came in these parts. Where it is reached, the offsets minimise the weighted
        cross-entropy. Each step multiplies the odds of a class by how much its mean probability lacks.
        """
        own = self._own
        top = torch.maximum(own, self._best_rival(own.new_zeros(self.num_classes)))
        odds = self._rivals.sub(top.unsqueeze(1)).exp_()
        odds.scatter_(1, self._target.unsqueeze(1), (own - top).exp().unsqueeze(1))
        each = (prior / self.support[: self.num_classes].clamp(min=1)).to(own)[self._target]
        seen = prior > 0
        offsets = torch.zeros_like(prior)
        for _ in range(steps):
            scale = offsets.exp().to(own)
            mean = self._reduce(((each / (odds @ scale)) @ odds).double()) * scale
            lack = prior.log() - mean.clamp(min=1e-30).log()
            offsets = centred(offsets + lack.clamp(-4, 4), seen)
        return offsets


def centred(offsets: Tensor, seen: Tensor) -> Tensor:
    """Returns offsets whose mean is 0 over the classes that were seen; those of others are 0."""
    return torch.where(seen, offsets - offsets[seen].mean(), 0.0)
