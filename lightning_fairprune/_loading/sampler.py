"""The samples of an epoch and their order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data.distributed import DistributedSampler

from lightning_fairprune._loading.kept import spread
from lightning_fairprune._loading.stream import UsersStream


class EpochSampler(DistributedSampler[Any]):
    """Draws the kept samples in an order that depends on the seed and the epoch alone.

    Each epoch is one permutation of the kept indices, with their repeats, shared among the ranks in turn, so that global
    batches do not depend on the number of ranks. The Trainer does not wrap a DistributedSampler again,
    and sets its epoch.

    Args:
        num_samples: N of the dataset.
        kept: indices to draw, int64 [n], a repeated one as often as it occurs; None for all.
        shuffle: whether to permute them.
        weights: probabilities to draw with replacement, float [N], or a sampler that has them: what is set on
            it applies from the next epoch on.
        classes: of all samples, int64 [N]; weights then count inside each class of the kept samples, and the
            classes are drawn in proportion to their kept samples, as their quotas say.
        stream: a sampler of the user's own to draw with; an epoch over the kept samples has as many draws a
            sample as one over all, or each as often as it is kept if it draws none twice.
        draws: samples of an epoch over all N; None for each sample once.
        seed: of the permutation.
        num_replicas: ranks that share the epoch.
        rank: this one.
        drop_last: whether an uneven tail is dropped instead of filled with repeats.
        epoch: the first epoch; workers prefetch before the Trainer sets it.
        skip: samples of the whole epoch, over all ranks, to skip in the first one.
        expected: `order_of_epoch` of the first epoch, if it is resumed.

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
        weights: Any = None,
        classes: Tensor | None = None,
        stream: UsersStream | None = None,
        draws: int | None = None,
        seed: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
        drop_last: bool = False,
        epoch: int = 0,
        skip: int = 0,
        expected: tuple[str, str] | None = None,
    ) -> None:
        super().__init__(
            range(num_samples),  # type: ignore[arg-type]
            num_replicas=num_replicas,
            rank=rank,
            shuffle=shuffle,
            seed=seed,
            drop_last=drop_last,
        )
        self._weights = weights
        self.stream = stream
        self._streamed: tuple[int, Tensor] | None = None
        self._draws = draws
        self.epoch = epoch
        self._skip, self._expected = (epoch, skip), expected
        self._drawn_last: tuple[int, str] | None = None
        self.draws_once = False
        """Whether a sampler of the user's own draws no sample twice in an epoch."""
        if stream is not None:
            first = self._stream_of(stream)
            self._draws, self.draws_once = len(first), len(first.bincount().nonzero()) == len(first)
        self.keep(kept, classes)

    @property
    def users(self) -> Any:
        """The user's sampler that has the weights, if there is one."""
        return self._weights if hasattr(self._weights, "weights") else None

    @property
    def weights(self) -> Tensor | None:
        """Probabilities to draw with replacement, float [N]."""
        found = getattr(self._weights, "weights", self._weights)
        return None if found is None else torch.as_tensor(found)

    @weights.setter
    def weights(self, weights: Any) -> None:
        if self.users is not None:
            self.users.weights = weights
        else:
            self._weights = weights

    def keep(self, kept: Tensor | None, classes: Tensor | None = None) -> None:
        """Draws from `kept` from the next epoch on; the loader expects the same length."""
        # Only a sampler of the user's has weights that tell samples apart.
        self.classes = None if self.users is None else classes
        population = len(self.dataset) if kept is None else len(kept)  # type: ignore[arg-type]
        self.kept = kept
        self.num_samples = self.size_of(population)
        self.total_size = self.num_samples * self.num_replicas

    def size_of(self, population: int) -> int:
        """Returns the samples of one rank in an epoch over `population` samples."""
        return self._share(self._drawn(population))

    def size_after(self, skip: int) -> int:
        """Returns the samples of one rank in an epoch of which `skip` over all ranks are done."""
        return self._share(max(self.size_of_epoch - skip, 0))

    @property
    def size_of_epoch(self) -> int:
        """The samples of an epoch over all ranks."""
        return self._drawn(len(self.dataset) if self.kept is None else len(self.kept))  # type: ignore[arg-type]

    @property
    def order_of_epoch(self) -> tuple[str, str]:
        """How the current epoch is ordered, in words, and a digest of its order over all ranks."""
        if self._drawn_last is None or self._drawn_last[0] != self.epoch:
            self._drawn_last = self.epoch, _digest(self._order())
        return self._words, self._drawn_last[1]

    @property
    def _words(self) -> str:
        if self.stream is not None:
            return type(self.stream.sampler).__name__
        if self._weights is not None:
            return "weights" if self.users is None else type(self.users).__name__
        return "shuffle=True" if self.shuffle else "shuffle=False"

    def _share(self, samples: int) -> int:
        return samples // self.num_replicas if self.drop_last else -(-samples // self.num_replicas)

    def _drawn(self, population: int) -> int:
        once = self.draws_once and population < len(self.dataset)  # type: ignore[arg-type]
        if self._draws is None or once:
            return population
        # The same number of draws per sample.
        return round(self._draws * population / len(self.dataset))  # type: ignore[arg-type]

    def for_others(self) -> EpochSampler:
        """Returns a sampler of whole epochs that shares all attributes, for others than the Trainer."""
        other = object.__new__(_WholeEpochs)
        other.__dict__ = self.__dict__
        return other

    def __iter__(self) -> Iterator[int]:
        order = self._order()
        # Kept, because weights that change in an epoch apply from the next one on.
        self._drawn_last = self.epoch, _digest(order)
        epoch, skip = self._skip
        if epoch != self.epoch or not skip:
            return iter(self._mine(order).tolist())
        if self._expected is not None and self._expected[1] != self._drawn_last[1]:
            raise ValueError(
                f"the checkpoint was taken after {skip} samples of epoch {epoch} in an order ({self._expected[0]}) that "
                f"is not the order now ({self._words}), so that samples would be skipped or repeated: give the same "
                "sampler, or resume from a checkpoint at an epoch's end."
            )
        return iter(self._mine(order, skip).tolist())

    def _mine(self, order: Tensor, skip: int = 0) -> Tensor:
        """Returns what this rank draws in the epoch after its first samples."""
        end = skip + self.size_after(skip) * self.num_replicas
        if end > len(order):  # the smallest number of repeats that evens out the ranks
            order = order.repeat(-(-end // max(len(order), 1)))
        return order[skip + self.rank : end : self.num_replicas]

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch, also of the user's own sampler."""
        super().set_epoch(epoch)
        if self.stream is not None and hasattr(self.stream.sampler, "set_epoch"):
            self.stream.sampler.set_epoch(epoch)

    def _stream_of(self, stream: UsersStream) -> Tensor:
        if self._streamed is None or self._streamed[0] != self.epoch:
            self._streamed = self.epoch, stream.epoch(self.epoch)
        return self._streamed[1]

    def _order(self) -> Tensor:
        if self.stream is not None:
            return self._restricted(self._stream_of(self.stream))
        n = len(self.dataset) if self.kept is None else len(self.kept)  # type: ignore[arg-type]
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        if self.weights is not None:
            # torch.multinomial is limited to 2^24 categories; inverting the cumulative sum is not.
            edges = self._weights_of_kept(self.weights).cumsum(0)
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

    def _weights_of_kept(self, weights: Tensor) -> Tensor:
        size = len(self.dataset)  # type: ignore[arg-type]
        if weights.shape != (size,):
            raise ValueError(
                f"the sampler's weights must stay one for each of {size} samples, got {list(weights.shape)}."
            )
        if self.kept is None:
            return weights.double()
        weights = weights[self.kept].double()
        if self.classes is None:
            return weights
        of = self.classes[self.kept]
        total = torch.zeros(int(of.max()) + 1, dtype=torch.float64).index_add_(0, of, weights)
        return weights * (of.bincount() / total.masked_fill(total == 0, torch.inf))[of]

    def _restricted(self, order: Tensor) -> Tensor:
        if self.kept is None:
            return order
        is_kept = torch.zeros(len(self.dataset), dtype=torch.bool)  # type: ignore[arg-type]
        is_kept[self.kept] = True
        order = order[is_kept[order]]
        if self.draws_once:
            is_kept[order] = False
            left_out = is_kept.nonzero().squeeze(1)
            return spread(torch.cat([order, left_out]), self.kept)
        if not len(order):
            raise ValueError(
                f"your {type(self.stream.sampler).__name__} drew none of the {len(self.kept)} kept samples in "  # type: ignore[union-attr]
                f"epoch {self.epoch}: use a sampler that draws from all classes."
            )
        return order


class _WholeEpochs(EpochSampler):
    def __iter__(self) -> Iterator[int]:
        return iter(self._mine(self._order()).tolist())


def _digest(order: Tensor) -> str:
    return hashlib.blake2b(order.numpy().tobytes(), digest_size=16).hexdigest()
