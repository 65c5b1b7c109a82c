"""The samples of an epoch and their order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data.distributed import DistributedSampler


class EpochSampler(DistributedSampler[Any]):
    """Draws the kept samples in an order that depends on the seed and the epoch alone.

    Each epoch is one permutation of the kept indices, shared among the ranks in turn, so that global
    batches do not depend on the number of ranks. The Trainer does not wrap a DistributedSampler again,
    and sets its epoch.

    Args:
        num_samples: N of the dataset.
        kept: indices to draw, int64 [n]; None for all.
        shuffle: whether to permute them.
        weights: probabilities to draw with replacement, float [N].
        draws: samples of an epoch over all N; None for each sample once.
        seed: of the permutation.
        num_replicas: ranks that share the epoch.
        rank: this one.
        drop_last: whether an uneven tail is dropped instead of filled with repeats.
        epoch: the first epoch; workers prefetch before the Trainer sets it.
        skip: samples of this rank to skip in the first epoch.

    Example:
        >>> sampler = EpochSampler(10, kept=torch.tensor([2, 3, 5]), shuffle=False)
        >>> list(sampler), len(sampler)
        ([2, 3, 5], 3)
    """

    def __init__(
        self,
        num_samples: int,
        *,
        kept: Tensor | None = None,
        shuffle: bool = True,
        weights: Tensor | None = None,
        draws: int | None = None,
        seed: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
        drop_last: bool = False,
        epoch: int = 0,
        skip: int = 0,
    ) -> None:
        super().__init__(
            range(num_samples),  # type: ignore[arg-type]
            num_replicas=num_replicas,
            rank=rank,
            shuffle=shuffle,
            seed=seed,
            drop_last=drop_last,
        )
        self.weights = weights
        self._draws = draws
        self.epoch = epoch
        self._skip = (epoch, skip)
        self.keep(kept)

    def keep(self, kept: Tensor | None) -> None:
        """Draws from `kept` from the next epoch on; the loader expects the same length."""
        population = len(self.dataset) if kept is None else len(kept)  # type: ignore[arg-type]
        self.kept = kept
        self.num_samples = self.size_of(population)
        self.total_size = self.num_samples * self.num_replicas

    def size_of(self, population: int) -> int:
        """Returns the samples of one rank in an epoch over `population` samples."""
        draws = self._drawn(population)
        return draws // self.num_replicas if self.drop_last else -(-draws // self.num_replicas)

    def _drawn(self, population: int) -> int:
        if self._draws is None:
            return population
        # The same number of draws per sample.
        return round(self._draws * population / len(self.dataset))  # type: ignore[arg-type]

    def for_others(self) -> EpochSampler:
        """Returns a sampler of whole epochs that shares all attributes, for others than the Trainer."""
        other = object.__new__(_WholeEpochs)
        other.__dict__ = self.__dict__
        return other

    def __iter__(self) -> Iterator[int]:
        mine = self._mine()
        epoch, skip = self._skip
        return iter((mine[skip:] if skip and epoch == self.epoch else mine).tolist())

    def _mine(self) -> Tensor:
        """Returns what this rank draws in the epoch."""
        order = self._order()
        if self.total_size > len(order):  # the smallest number of repeats that evens out the ranks
            repeats = -(-self.total_size // max(len(order), 1))
            order = order.repeat(repeats)
        return order[self.rank : self.total_size : self.num_replicas]

    def _order(self) -> Tensor:
        n = len(self.dataset) if self.kept is None else len(self.kept)  # type: ignore[arg-type]
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        if self.weights is not None:
            # torch.multinomial is limited to 2^24 categories; inverting the cumulative sum is not.
            weights = self.weights if self.kept is None else self.weights[self.kept]
            edges = weights.double().cumsum(0)
            if not edges[-1] > 0:
                raise ValueError(
                    f"the sampler's weights are 0 for all {n} kept samples: give samples that may be "
                    "kept a weight above 0."
                )
            drawn = torch.rand(self._drawn(n), generator=generator, dtype=torch.float64) * edges[-1]
            order = torch.searchsorted(edges, drawn, right=True).clamp_(max=n - 1)
        elif self.shuffle:
            draws = self._drawn(n)
            rounds = max(1, -(-draws // max(n, 1)))
            order = torch.cat([torch.randperm(n, generator=generator) for _ in range(rounds)])
            order = order[:draws]
        else:
            order = torch.arange(n)
        return order if self.kept is None else self.kept[order]


class _WholeEpochs(EpochSampler):
    def __iter__(self) -> Iterator[int]:
        return iter(self._mine().tolist())
