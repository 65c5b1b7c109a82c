"""What the Trainer is given in place of the user's loader, and what others see of it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from importlib import import_module
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader

from lightning_fairprune._lightning.kinds import lightning_class
from lightning_fairprune._loading.index import IndexedBatch


def only_loader(users: Any) -> Any:
    """Returns the one loader in a loader, a collection of loaders or a CombinedLoader.

    Raises:
        TypeError: If there are several.
    """
    if isinstance(users, DataLoader):
        return users
    if users is None:
        raise _not_one("NoneType")
    flat = _combined(users).flattened
    if len(flat) != 1 or not isinstance(flat[0], DataLoader):
        kind = type(users).__name__
        raise _not_one(kind if len(flat) == 1 and flat[0] is users else f"{kind} of {len(flat)}")
    return flat[0]


def _not_one(found: str) -> TypeError:
    return TypeError(
        "`train_dataloader()` must return one torch DataLoader to prune data (trainer.fit() may be "
        f"given one as well), got {found}: combine several training sets in one ConcatDataset."
    )


def _combined(users: Any) -> Any:
    is_combined = lightning_class(users, "CombinedLoader") is not None
    return users if is_combined else CombinedLoader(users, "max_size_cycle")


class _ShowsAnother:
    """A CombinedLoader that the Trainer iterates, while others see plain loaders in its `iterables`.

    So iterating ``trainer.train_dataloader`` in a hook yields the user's batches, and neither restarts the
    workers of the Trainer's loader nor moves its sampler.
    """

    shown: Any

    @property
    def iterables(self) -> Any:
        return self.shown


def served(trainer: pl.Trainer, users: Any, loader: DataLoader[Any], shown: DataLoader[Any]) -> Any:
    """Returns the loader of the Trainer in the form of the user's.

    Args:
        trainer: whose package the result is of.
        users: the user's loader, collection of one loader, or CombinedLoader of one.
        loader: what the Trainer iterates in place of the one loader.
        shown: what ``trainer.train_dataloader`` shows in its place.
    """
    if lightning_class(users, "CombinedLoader") is not None:
        combined = copy.copy(users)
    else:
        kind = lightning_class(trainer, "Trainer") or pl.Trainer
        package = kind.__module__.removesuffix(".trainer.trainer")
        home = import_module(f"{package}.utilities.combined_loader")
        combined = home.CombinedLoader(users, "max_size_cycle")
    combined.flattened = [shown]
    seen = combined.iterables
    combined.flattened = [loader]
    kind = type(type(combined).__name__, (_ShowsAnother, type(combined)), {"shown": seen})
    result: Any = object.__new__(kind)
    result.__dict__ = combined.__dict__
    return result


def split(batch: Any, *, nested: bool) -> tuple[Any, IndexedBatch | None]:
    """Returns a batch as the user has it, and the one with indices that it holds or is."""
    if isinstance(batch, IndexedBatch):
        return batch.batch, batch
    if not nested:
        return batch, None
    found: list[IndexedBatch] = []

    def plain(leaf: Any) -> Any:
        if isinstance(leaf, IndexedBatch):
            found.append(leaf)
            return leaf.batch
        return leaf

    whole = tree_map(plain, batch, is_leaf=lambda part: isinstance(part, IndexedBatch))
    return (whole, found[0]) if found else (batch, None)


class InForm:
    """The user's collate function, followed by the collection that the Trainer has its batches in."""

    def __init__(self, collate: Callable[[Any], Any], users: Any) -> None:
        self.collate, self.form = collate, tree_map(lambda _: None, _combined(users).iterables)

    def __call__(self, samples: Any) -> Any:
        batch = self.collate(samples)
        return tree_map(lambda _: batch, self.form)
