"""A copy of the user's training DataLoader that is restricted to some samples or carries indices."""

from __future__ import annotations

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

from lightning_fairprune._loading.index import IndexCollate, IndexView, View
from lightning_fairprune._loading.own_iteration import carrying_kind, check_iteration
from lightning_fairprune._loading.sampler import EpochSampler
from lightning_fairprune._loading.stream import UsersStream, batch_size_of


class ResumedLoader(DataLoader[Any]):
    """A DataLoader that its owner resumes.

    The Trainer warns of unreliable results if a loader lacks these methods. The position is in the owner's
    checkpoint, as a loader may be built twice before training resumes.
    """

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass


def rebuild(
    loader: DataLoader[Any],
    *,
    kept: Tensor | None = None,
    classes: Tensor | None = None,
    carry_index: bool = False,
    seed: int = 0,
    num_replicas: int = 1,
    rank: int = 0,
    epoch: int = 0,
    samples_seen: int = 0,
    order_seen: tuple[str, str] | None = None,
) -> DataLoader[Any]:
    """Returns a new loader like `loader` that draws only the kept samples.

    Args:
        loader: over a map-style dataset of fixed length, with samplers of torch or one of the user's own.
        kept: dataset indices to draw, int64 [n], a repeated one as often as it occurs; None for all.
        classes: of all samples, int64 [N], that weights of a sampler leave at their share of the kept samples.
        carry_index: whether batches are :class:`IndexedBatch`.
        seed: of the order of the samples.
        num_replicas: ranks that share an epoch, unless a DistributedSampler says so.
        rank: this one.
        epoch: the first epoch.
        samples_seen: samples of that epoch over all ranks to skip, to resume inside it.
        order_seen: `EpochSampler.order_of_epoch` of that epoch.

    Raises:
        TypeError: If the samples have no stable index or the sampler cannot be restricted.
    """
    check_restrictable(loader)
    size = len(sampled_dataset(loader))  # type: ignore[arg-type]
    drawn = drawing(loader)
    order = {"num_replicas": num_replicas, "rank": rank} | _order_of(drawn, size, seed)
    epoch_sampler = EpochSampler(
        size,
        kept=kept,
        classes=classes,
        seed=seed,
        epoch=epoch,
        skip=0 if resumes_itself(loader) else samples_seen,
        expected=order_seen,
        **order,
    )
    return copied(
        loader,
        carry_index=carry_index,
        **_batches(loader, epoch_sampler),
    )


def resumes_itself(loader: DataLoader[Any]) -> bool:
    """Whether a user's loader keeps its position in the Trainer's checkpoint, as that of torchdata does."""
    return hasattr(loader, "load_state_dict")


def shown(users: DataLoader[Any], rebuilt: DataLoader[Any]) -> DataLoader[Any]:
    """Returns a loader of the samples of `rebuilt` that others than the Trainer may iterate.

    It has the data set and the batches of the user's loader, workers and epochs of its own, and attributes of
    its sampler are those of the Trainer's.
    """
    sampler: Any = rebuilt.sampler
    return copied(
        users,
        **_batches(users, sampler.for_others()),
    )


def copied(
    loader: DataLoader[Any], *, carry_index: bool = False, **changes: Any
) -> DataLoader[Any]:
    """Returns a copy of a loader with other attributes; another `batch_sampler` draws from `sampled_dataset`.

    A subclass may have arguments of its own, or bring a collate function and ignore the one it is given; calling
    its `__init__` again would need all of them and may lose some. All that a loader does follows from its class
    and attributes, so these are copied.
    """
    check_iteration(loader)
    part = _part_of(loader) if "batch_sampler" in changes else None
    kind: Any = ResumedLoader if type(loader) is DataLoader else type(loader)
    if carry_index:
        kind = carrying_kind(kind)
        changes["collate_fn"] = IndexCollate(changes.get("collate_fn", loader.collate_fn))
        changes["dataset"] = IndexView(loader.dataset, part)
    elif part is not None:
        changes["dataset"] = View(loader.dataset, part)
    copy: DataLoader[Any] = object.__new__(kind)
    # Lightning notes the arguments of __init__, to build a loader again with another sampler.
    kept = {name: value for name, value in vars(loader).items() if not name.startswith("__pl_")}
    vars(copy).update(kept | changes | {"_iterator": None})
    if "next_iter_state" in kept:  # torchdata's, of the loader that was copied
        vars(copy)["next_iter_state"] = None
    for name, value in changes.items():
        if getattr(copy, name) is not value:
            raise TypeError(
                f"a {type(loader).__name__} cannot be rebuilt over the kept samples: its `{name}` is not an "
                "attribute that can be set, as that of torch.utils.data.DataLoader is."
            )
    return copy


class Drawing(NamedTuple):
    """What a loader draws with, and in which batches."""

    sampler: Any
    batch_size: int
    drop_last: bool
    is_own: bool
    """Whether the order is the user's own."""
    batched: bool = False
    """Whether the sampler yields batches."""


def drawing(loader: DataLoader[Any]) -> Drawing:
    """Returns what a loader draws with, which torch's own batch sampler may hold."""
    batches: Any = loader.batch_sampler
    if not _is_plain(batches):
        drop_last = bool(getattr(batches, "drop_last", False))
        return Drawing(batches, batch_size_of(batches), drop_last, is_own=True, batched=True)
    sampler = batches.sampler
    own = not _knows_how_to_restrict(sampler)
    return Drawing(sampler, batches.batch_size, batches.drop_last, own)


def _batches(loader: DataLoader[Any], sampler: EpochSampler) -> dict[str, Any]:
    """Returns the attributes of a loader that draws batches from `sampler` as `loader` would."""
    drawn = drawing(loader)
    kind: Any = type(loader.batch_sampler) if _of_torchdata(loader.batch_sampler) else BatchSampler
    return {
        "sampler": sampler,
        "batch_sampler": kind(sampler, drawn.batch_size, drawn.drop_last),
        "batch_size": drawn.batch_size,
        "drop_last": drawn.drop_last,
    }


def _order_of(drawn: Drawing, size: int, seed: int) -> dict[str, Any]:
    """Returns the arguments of an `EpochSampler` that draws as a loader does."""
    sampler = drawn.sampler
    if drawn.is_own:
        return {"stream": UsersStream(sampler, size, batched=drawn.batched, seed=seed)}
    if isinstance(sampler, DistributedSampler):
        names = ("num_replicas", "rank", "shuffle", "drop_last")
        return {name: getattr(sampler, name) for name in names}
    if isinstance(sampler, WeightedRandomSampler):
        return {"weights": sampler, "draws": sampler.num_samples}
    if isinstance(sampler, RandomSampler):
        weights = torch.ones(size) if sampler.replacement else None
        return {"weights": weights, "draws": sampler.num_samples}
    return {"shuffle": not isinstance(sampler, SequentialSampler)}


def sampled_dataset(loader: DataLoader[Any]) -> Dataset[Any]:
    """Returns the dataset that indices refer to: with a SubsetRandomSampler, its part in its order."""
    part = _part_of(loader)
    return loader.dataset if part is None else Subset(loader.dataset, part)


def _part_of(loader: DataLoader[Any]) -> list[int] | None:
    batches: Any = loader.batch_sampler
    sampler = batches.sampler if _is_plain(batches) else None
    if isinstance(sampler, SubsetRandomSampler) and _knows_how_to_restrict(sampler):
        return [int(i) for i in sampler.indices]
    return None


def check_restrictable(loader: object) -> None:
    """Raises an error unless `loader` has samples and can be rebuilt over a part of them."""
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
            "the training set must have at least one sample to prune data, got none: check where "
            f"{type(loader.dataset).__name__} reads them."
        )
    batches: Any = loader.batch_sampler
    if batches is None:
        raise TypeError(
            "a DataLoader that makes no batches cannot be restricted to the kept samples: give the "
            "DataLoader a `batch_size`."
        )
    sampler: Any = batches.sampler if _is_plain(batches) else batches
    if isinstance(sampler, WeightedRandomSampler) and not sampler.replacement:
        raise TypeError(
            "a WeightedRandomSampler without replacement cannot be restricted to the kept samples: "
            "use replacement=True or shuffle=True."
        )
    if not hasattr(sampler, "__len__"):
        raise TypeError(
            f"a sampler of type {type(sampler).__name__} has no length, so that it cannot be restricted to "
            "the kept samples: give it a __len__, or use shuffle=True."
        )
    own = not _is_plain(batches) or not _knows_how_to_restrict(sampler)
    inner: Any = next(
        (
            s
            for s in (sampler, getattr(sampler, "sampler", None))
            if isinstance(s, DistributedSampler)
        ),
        None,
    )
    if own and inner is not None and inner.num_replicas > 1:
        raise TypeError(
            f"a sampler of type {type(sampler).__name__} shares the samples among {inner.num_replicas} ranks in "
            "its own way, which cannot be restricted to the kept samples: use a DistributedSampler."
        )


def _of_torchdata(sampler: Any) -> bool:
    # Its samplers keep a state and otherwise do the same as torch's.
    return type(sampler).__module__.startswith("torchdata.stateful_dataloader")


def _is_plain(batch_sampler: Any) -> bool:
    kind = type(batch_sampler)
    of_torch = isinstance(batch_sampler, BatchSampler) and kind.__iter__ is BatchSampler.__iter__
    return of_torch or _of_torchdata(batch_sampler)


def _knows_how_to_restrict(sampler: Any) -> bool:
    # A subclass with another order would lose it, so the iteration must be torch's.
    known = [RandomSampler, SequentialSampler, SubsetRandomSampler, WeightedRandomSampler]
    kinds: list[Any] = [*known, DistributedSampler]
    return _of_torchdata(sampler) or any(type(sampler).__iter__ is kind.__iter__ for kind in kinds)
