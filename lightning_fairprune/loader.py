"""The user's training DataLoader once more: restricted to some samples, carrying their indices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from torch.utils.data.distributed import DistributedSampler

__all__ = ["EpochSampler", "IndexView", "IndexedBatch", "rebuild", "sampled_dataset"]


class IndexedBatch(NamedTuple):
    """A batch together with the dataset index of each of its samples.

    A named tuple, so that pinning memory and precision conversion look inside.
    """

    batch: Any
    indices: Tensor


class _Fetched(NamedTuple):
    samples: Any
    indices: list[int]


class IndexView(Dataset[Any]):
    """The dataset whose batches remember which samples they hold.

    The index travels with the sample through the workers, so no order of workers can mix them up.
    """

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        # Not for the loader: a callback of the user's may look at single samples.
        return self.dataset[index]

    def __getitems__(self, indices: list[int]) -> _Fetched:
        fetch = getattr(self.dataset, "__getitems__", None)
        samples = fetch(indices) if fetch else [self.dataset[i] for i in indices]
        return _Fetched(samples, indices)

    def __getattr__(self, name: str) -> Any:
        # A worker_init_fn may ask the dataset for its attributes. Dunders are left alone: pickle
        # probes for them before `dataset` exists.
        if name.startswith("__") or name == "dataset":
            raise AttributeError(name)
        return getattr(self.dataset, name)


class IndexCollate:
    """The user's collate function, followed by the indices."""

    def __init__(self, collate: Callable[[Any], Any]) -> None:
        self.collate = collate

    def __call__(self, fetched: _Fetched) -> IndexedBatch:
        return IndexedBatch(self.collate(fetched.samples), torch.as_tensor(fetched.indices))


class EpochSampler(DistributedSampler[Any]):
    """Draws the kept samples in an order that depends on the seed and the epoch alone.

    Each epoch is one permutation of the kept indices, dealt out to the ranks in turn, so every
    number of ranks sees the same global batches. Being a DistributedSampler it is never wrapped
    again by the Trainer, which also tells it the epoch.

    Args:
        num_samples: N of the dataset.
        kept: indices to draw, int64 [n]; None for all.
        shuffle: whether to permute them.
        weights: probabilities to draw with replacement, float [N].
        draws: samples an epoch of all N; None for each sample once.
        seed: of the permutation.
        num_replicas: ranks that share the epoch.
        rank: this one.
        drop_last: whether an uneven tail is dropped rather than filled with repeats.
        epoch: the epoch to start with. Workers prefetch before the Trainer tells the epoch.
        skip: samples of this rank that the starting epoch has already seen.

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
        """Draws from `kept` from the next epoch on; its length must be what the loader expects."""
        population = len(self.dataset) if kept is None else len(kept)  # type: ignore[arg-type]
        self.kept = kept
        self.num_samples = self.size_of(population)
        self.total_size = self.num_samples * self.num_replicas

    def size_of(self, population: int) -> int:
        """Samples of one rank in an epoch over `population` samples."""
        draws = self._drawn(population)
        return draws // self.num_replicas if self.drop_last else -(-draws // self.num_replicas)

    def _drawn(self, population: int) -> int:
        if self._draws is None:
            return population
        # As many draws per kept sample as there were per sample.
        return round(self._draws * population / len(self.dataset))  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[int]:
        order = self._order()
        if self.total_size > len(order):  # the smallest number of repeats that evens out the ranks
            repeats = -(-self.total_size // max(len(order), 1))
            order = order.repeat(repeats)
        mine = order[self.rank : self.total_size : self.num_replicas]
        epoch, skip = self._skip
        if skip and epoch == self.epoch:
            mine = mine[skip:]
        return iter(mine.tolist())

    def _order(self) -> Tensor:
        n = len(self.dataset) if self.kept is None else len(self.kept)  # type: ignore[arg-type]
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        if self.weights is not None:
            # torch.multinomial stops at 2^24 categories; the inverse of the cumulative sum doesn't.
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


class ResumedLoader(DataLoader[Any]):
    """A DataLoader whose owner brings it back to its position.

    The Trainer takes a loader for resumable when it has these methods, and warns of unreliable
    results otherwise. The position itself is part of the owner's checkpoint, where it also survives
    a loader that is built twice before training goes on.
    """

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass


_COPIED = (
    "num_workers",
    "pin_memory",
    "pin_memory_device",
    "timeout",
    "worker_init_fn",
    "multiprocessing_context",
    "generator",
    "prefetch_factor",
    "persistent_workers",
    "in_order",
    "snapshot_every_n_steps",  # torchdata's StatefulDataLoader
)


def rebuild(
    loader: DataLoader[Any],
    *,
    kept: Tensor | None = None,
    carry_index: bool = False,
    seed: int = 0,
    num_replicas: int = 1,
    rank: int = 0,
    epoch: int = 0,
    batches_seen: int = 0,
) -> DataLoader[Any]:
    """Returns a new loader like `loader` that draws only the kept samples.

    Args:
        loader: over a map-style dataset of fixed length, with a sampler that can be restricted:
            random, sequential, weighted, subset-random or distributed.
        kept: dataset indices to draw, int64 [n]; None for all.
        carry_index: whether batches arrive as :class:`IndexedBatch`.
        seed: of the order of the samples.
        num_replicas: ranks that share an epoch; a DistributedSampler brings its own.
        rank: this one.
        epoch: the epoch in which the loader is first used.
        batches_seen: batches of that epoch that are already done, to resume inside it.

    Raises:
        TypeError: If the samples have no stable index or the sampler cannot be restricted.
    """
    check_restrictable(loader)
    dataset = sampled_dataset(loader)
    size = len(dataset)  # type: ignore[arg-type]
    sampler = loader.sampler
    shuffle, weights, draws, drop_uneven = True, None, None, False
    if isinstance(sampler, DistributedSampler):
        num_replicas, rank = sampler.num_replicas, sampler.rank
        shuffle, drop_uneven = sampler.shuffle, sampler.drop_last
    elif isinstance(sampler, WeightedRandomSampler):
        weights, draws = sampler.weights, sampler.num_samples
    elif isinstance(sampler, RandomSampler) and sampler.replacement:
        weights, draws = torch.ones(size), sampler.num_samples
    elif isinstance(sampler, RandomSampler):
        draws = sampler.num_samples
    elif isinstance(sampler, SequentialSampler):
        shuffle = False
    stateful = hasattr(loader, "load_state_dict")  # torchdata's finds its own way back
    assert loader.batch_size is not None  # check_restrictable saw to it
    epoch_sampler = EpochSampler(
        size,
        kept=kept,
        shuffle=shuffle,
        weights=weights,
        draws=draws,
        seed=seed,
        num_replicas=num_replicas,
        rank=rank,
        drop_last=drop_uneven,
        epoch=epoch,
        skip=0 if stateful else batches_seen * loader.batch_size,
    )
    options: dict[str, Any] = {
        name: getattr(loader, name) for name in _COPIED if hasattr(loader, name)
    }
    if not options.get("pin_memory_device"):
        options.pop("pin_memory_device", None)  # deprecated; passing it on empty would warn
    options["collate_fn"] = IndexCollate(loader.collate_fn) if carry_index else loader.collate_fn
    kind = ResumedLoader if type(loader) is DataLoader else type(loader)
    view = IndexView(dataset) if carry_index else dataset
    options |= {"batch_size": loader.batch_size, "drop_last": loader.drop_last}
    try:
        return kind(view, sampler=epoch_sampler, **options)
    except TypeError as error:
        raise TypeError(
            f"a {type(loader).__name__} cannot be rebuilt over the kept samples ({error}): its "
            "__init__ must take the keyword arguments of torch.utils.data.DataLoader."
        ) from error


def sampled_dataset(loader: DataLoader[Any]) -> Dataset[Any]:
    """Returns the dataset that indices refer to.

    A SubsetRandomSampler draws from a part of the dataset; that part, in the sampler's order, is
    then the data set of N samples.
    """
    if isinstance(loader.sampler, SubsetRandomSampler):
        return Subset(loader.dataset, list(loader.sampler.indices))
    return loader.dataset


def check_restrictable(loader: object) -> None:
    """Raises a TypeError unless `loader` can be rebuilt over a part of its samples, and has some."""
    if not isinstance(loader, DataLoader):
        raise TypeError(
            "`train_dataloader()` must return one torch DataLoader to prune data, got "
            f"{type(loader).__name__}."
        )
    if isinstance(loader.dataset, IterableDataset):
        raise TypeError(
            f"an iterable dataset ({type(loader.dataset).__name__}) has no stable sample index to "
            "prune by: use a map-style dataset with __getitem__ and __len__."
        )
    if hasattr(loader.dataset, "__len__") and not len(loader.dataset):
        raise ValueError(
            "the training set must have at least one sample to prune data, it is empty: look at where "
            f"{type(loader.dataset).__name__} reads them."
        )
    if loader.batch_size is None or not _is_plain(loader.batch_sampler):
        found = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
        raise TypeError(
            f"a batch sampler of the user's own ({type(found).__name__}) cannot be restricted to "
            "the kept samples: give the DataLoader a `batch_size` and a plain sampler instead."
        )
    sampler: Any = loader.sampler
    if isinstance(sampler, WeightedRandomSampler) and not sampler.replacement:
        raise TypeError(
            "a WeightedRandomSampler without replacement cannot be restricted to the kept samples: "
            "use replacement=True or shuffle=True."
        )
    if not _knows_how_to_restrict(sampler):
        raise TypeError(
            f"a sampler of type {type(loader.sampler).__name__} cannot be restricted to the kept "
            "samples: use shuffle=True, a WeightedRandomSampler, a SubsetRandomSampler or a "
            "DistributedSampler."
        )


def _of_torchdata(sampler: Any) -> bool:
    # Its samplers keep a state and do the same as torch's otherwise.
    return type(sampler).__module__.startswith("torchdata.stateful_dataloader")


def _is_plain(batch_sampler: Any) -> bool:
    return type(batch_sampler) is BatchSampler or _of_torchdata(batch_sampler)


def _knows_how_to_restrict(sampler: Any) -> bool:
    # A subclass with an order of its own would lose it, so the iteration must be torch's.
    known = (
        RandomSampler,
        SequentialSampler,
        SubsetRandomSampler,
        WeightedRandomSampler,
        DistributedSampler,
    )
    return _of_torchdata(sampler) or any(type(sampler).__iter__ is kind.__iter__ for kind in known)
