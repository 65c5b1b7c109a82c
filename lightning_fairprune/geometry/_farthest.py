"""Farthest-first centres, exact, without a pass over the data per centre.

The distance of a sample to the centres only shrinks as centres are added, so its distance to some of them bounds it from
above, and a sample whose bound is below the farthest is skipped. A product of matrices, which is cheap but rounds, finds
the few pairs that may matter; only these are computed as differences, in float64, and only such distances are compared.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_ROWS = 128  # samples multiplied with the centres new to them at a time
_WIDTH = 4096  # centres in one product
_PAIRS = 4096  # pairs computed as differences at a time: 16 MB for 512 features
_FEWEST, _MOST = 256, 4096  # samples that compete at a time
_TURNS = 64  # centres that a pool of more than the fewest should yield, and after which it shrinks
_TINY = 1e-30  # more than float32 loses to underflow, with features scaled to at most 1


class FarthestFirst:
    """Samples [N, D] and the centres among them, in order of choice, after M `given` ones; at most `budget` are chosen.

    The products are of copies ``x`` of the samples from which the mean was subtracted, so that they do not cancel
    when the features are far from 0. In D features and with the unit roundoff ``u = 2**-24`` of float32,
    ``|x|^2 + |c|^2 - 2 x.c`` is wrong by less than ``2 (D + 8) u (|x|^2 + |c|^2)``, in whatever order it is
    summed; in float64 by twice that with its own u, as the squares and the differences round then no less.
    """

    def __init__(self, features: Tensor, given: Tensor, budget: int) -> None:
        (n, d), device = features.shape, features.device
        self.features = features
        # A power of two changes no digit, and squares cannot overflow.
        exponent = math.frexp(max(_largest(features), _largest(given)))[1]
        self.scale = 2.0 ** -max(exponent, -1000)
        self.mean = torch.zeros(d, dtype=torch.float64, device=device)
        for part in torch.split(features, _ROWS):
            self.mean += (part.double() * self.scale).sum(0)
        self.mean /= n
        dtype = torch.float32 if _products_keep_digits(device) else torch.float64
        self.moved, self.square = self._move(features, dtype)
        self.error = (d + 8) * (2.0**-23 if dtype == torch.float32 else 2.0**-51)
        self.wasted = 0  # pairs that were computed as differences and changed nothing

        self.bound = torch.full((n,), torch.inf, dtype=torch.float64, device=device)
        self.seen = torch.zeros(n, dtype=torch.int64, device=device)  # by how many centres

        count = len(given) + budget
        self.centre = torch.empty(count, d, dtype=features.dtype, device=device)
        self.centre_moved = torch.empty(count, d, dtype=dtype, device=device)
        self.centre_square = torch.empty(count, dtype=torch.float64, device=device)
        self.bias = torch.empty(count, dtype=dtype, device=device)
        self.count = len(given)
        if self.count:
            own = slice(self.count)
            self.centre[own] = given
            self.centre_moved[own], self.centre_square[own] = self._move(given, dtype)
            self.bias[own] = self.centre_square[own] * ((self.error - 1) / 2)
            self._first_bound()

    def nearest_to_mean(self) -> int:
        return int(self.square.sqrt().argmin())

    def leave_out(self, sample: Tensor) -> None:
        """Never choose these: they are among the given centres."""
        self.bound[sample] = -1.0

    def add(self, sample: int) -> None:
        now, self.count = self.count, self.count + 1
        self.centre[now] = self.features[sample]
        self.centre_moved[now] = self.moved[sample]
        self.centre_square[now] = self.square[sample]
        self.bias[now] = self.square[sample] * ((self.error - 1) / 2)
        if not now:
            self._first_bound()
        self.bound[sample] = -1.0

    def choose(self, budget: int) -> tuple[list[int], list[float]]:
        """Return the next samples farthest from all centres, and how far each was when chosen."""
        order: list[int] = []
        radius: list[float] = []
        size = _FEWEST
        while len(order) < budget:
            pool, limit, rival = self._highest(size)
            self._refresh(pool)
            before = len(order)
            if self._compete(pool, limit, rival, budget, order, radius):
                rest = (self.bound >= 0).nonzero().flatten()[: budget - len(order)].tolist()
                order += rest
                radius += [0.0] * len(rest)
            if self.wasted > len(self.bound) and self.moved.dtype == torch.float32:
                self._widen()
            picks = len(order) - before
            if picks < _TURNS // 2:
                size = min(2 * size, _MOST)
            elif picks >= _TURNS:
                size = max(size // 2, _FEWEST)
        return order, [r / self.scale for r in radius]

    def _highest(self, size: int) -> tuple[Tensor, float, int]:
        """Return the samples of highest bound, ascending, the next bound below, and the first of equal bound left out, or -1."""
        if size >= len(self.bound):
            return torch.arange(len(self.bound), device=self.bound.device), -1.0, -1
        last, limit = self.bound.topk(size + 1).values[-2:].tolist()
        if limit < last:
            return (self.bound >= last).nonzero().flatten(), limit, -1
        above = (self.bound > last).nonzero().flatten()
        equal = (self.bound == last).nonzero().flatten()
        inside = size - len(above)
        return torch.cat([above, equal[:inside]]).sort().values, limit, int(equal[inside])

    def _compete(
        self,
        pool: Tensor,
        limit: float,
        rival: int,
        budget: int,
        order: list[int],
        radius: list[float],
    ) -> bool:
        """Choose from the pool while its farthest is the farthest of all; True if that lies on a centre."""
        pool = pool[self.bound[pool] >= max(limit, 0.0)]
        if not len(pool):
            return False
        bound, moved, square = self.bound[pool], self.moved[pool], self.square[pool]
        floor = self._floor(square, bound)
        sample = pool.tolist()
        if len(pool) > _FEWEST:  # check again soon whether a smaller pool would do
            budget = min(budget, len(order) + _TURNS)
        while len(order) < budget:
            i = int(bound.argmax())
            farthest = float(bound[i])
            if farthest < limit or (farthest == limit and sample[i] >= rival):
                break
            if farthest == 0.0:
                self.bound[pool] = bound
                return True
            order.append(sample[i])
            radius.append(farthest)
            self.add(sample[i])
            bound[i], floor[i] = -1.0, torch.inf
            now = self.count - 1
            product = moved.mv(self.centre_moved[now]).add_(self.bias[now])
            near = (product > floor).nonzero().flatten()
            if len(near):
                distance = self._distance(pool[near], torch.full_like(near, now))
                self.wasted += int((distance >= bound[near]).sum())
                bound[near] = bound[near].minimum(distance)
                floor[near] = self._floor(square[near], bound[near])
        self.bound[pool] = bound
        self.seen[pool] = self.count
        return False

    def _refresh(self, pool: Tensor) -> None:
        """Compare samples with the centres they have not seen, and make their bounds distances."""
        pool = pool[(self.seen[pool] < self.count) & (self.bound[pool] >= 0)]
        if not len(pool):
            return
        seen = self.seen[pool]
        for rows in torch.split(seen.argsort(), _ROWS):
            sample = pool[rows]
            moved = self.moved[sample]
            for start in range(int(seen[rows[0]]), self.count, _WIDTH):
                part = slice(start, min(start + _WIDTH, self.count))
                product = torch.addmm(self.bias[part], moved, self.centre_moved[part].T)
                self._tighten(sample, product, part)
        self.seen[pool] = self.count

    def _tighten(self, sample: Tensor, product: Tensor, part: slice) -> None:
        square = self.square[sample]
        floor, best = self._floor(square, self.bound[sample]), product.amax(1)
        row = (best > floor).nonzero().flatten()
        if not len(row):
            return
        # One of these is the nearest: their lowest possible distance is not above the highest of another.
        margin = (square[row] + self.centre_square[part].max()) * self.error + _TINY
        floor = torch.maximum(floor[row], (best[row] - margin).to(floor.dtype))
        pair = (product[row] >= floor[:, None]).nonzero()
        sample = sample[row[pair[:, 0]]]
        self.wasted += len(pair) - len(row)
        distance = self._distance(sample, pair[:, 1] + part.start)
        self.bound.scatter_reduce_(0, sample, distance, "amin")

    def _floor(self, square: Tensor, bound: Tensor) -> Tensor:
        """Return what `x.c + bias` must exceed for c to be closer to x than the bound."""
        floor = square.mul(1 - self.error).sub_(bound.square()).div_(2)
        return floor.to(self.moved.dtype)

    def _distance(self, sample: Tensor, centre: Tensor) -> Tensor:
        """Return the distances of samples to centres as differences in float64, scaled."""
        parts = []
        for i, j in zip(torch.split(sample, _PAIRS), torch.split(centre, _PAIRS), strict=True):
            difference = self.features[i].double().sub_(self.centre[j].double())
            parts.append(difference.mul_(self.scale).square_().sum(1).sqrt_())
        return torch.cat(parts)

    def _first_bound(self) -> None:
        """Bound every distance by the highest that the first centre may have."""
        both = self.square + self.centre_square[0]
        product = self.moved.mv(self.centre_moved[0]).double()
        bound = both.mul_(1 + self.error).sub_(product, alpha=2).add_(_TINY)
        self.bound.copy_(bound.sqrt_())

    def _widen(self) -> None:
        """Form the products in float64 from now on: float32 lacks digits for narrow clusters that lie far apart."""
        self.moved, _ = self._move(self.features, torch.float64)
        self.centre_moved = torch.empty_like(self.centre_moved, dtype=torch.float64)
        own = slice(self.count)
        self.centre_moved[own], _ = self._move(self.centre[own], torch.float64)
        self.error *= 2.0**-28
        self.bias = self.centre_square * ((self.error - 1) / 2)

    def _move(self, features: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return the scaled features minus their mean, and the squares of their lengths."""
        out = torch.empty(features.shape, dtype=dtype, device=features.device)
        square = torch.empty(len(features), dtype=torch.float64, device=features.device)
        for start in range(0, len(features), _ROWS):
            part = slice(start, start + _ROWS)
            moved = (features[part].double() * self.scale).sub_(self.mean)
            out[part] = moved
            square[part] = moved.square_().sum(1)
        return out, square


def _largest(features: Tensor) -> float:
    if not features.numel():
        return 0.0
    low, high = features.aminmax()
    return max(-float(low), float(high))


def _products_keep_digits(device: torch.device) -> bool:
    """Tell whether float32 products keep all digits: with TF32 or bfloat16 allowed they don't."""
    fine = torch.full((256, 256), 1 + 2.0**-12, device=device)
    return torch.equal(fine @ torch.eye(256, device=device), fine)
