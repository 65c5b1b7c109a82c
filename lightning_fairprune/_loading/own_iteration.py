"""Loaders whose class iterates in a way of its own, such as moving batches or cutting graphs out."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from types import GeneratorType
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _BaseDataLoaderIter

from lightning_fairprune._loading.index import IndexedBatch


def carrying_kind(kind: type[DataLoader[Any]]) -> type[DataLoader[Any]]:
    """Returns a class that iterates as `kind`, but yields each batch with the indices of its samples.

    A class with an `__iter__` or `_get_iterator` of its own works on its own batches: they come to it without
    their indices, which are put back once it is done.
    """
    if all(_is_torchs(kind, name) for name in ("__iter__", "_get_iterator")):
        return kind
    return type(kind.__name__, (_PutsBack, kind, _TakesOff), {"__module__": kind.__module__})


def check_iteration(loader: DataLoader[Any]) -> None:
    """Raises if a loader holds an iteration over all samples, which a copy would continue."""
    for name, value in vars(loader).items():
        if name != "_iterator" and isinstance(value, _BaseDataLoaderIter | GeneratorType):
            raise TypeError(
                f"a {type(loader).__name__} cannot be restricted to the kept samples: it iterates over all "
                f"samples in `{name}`; use torch.utils.data.DataLoader, with persistent_workers=True."
            )


def _is_torchs(kind: type, name: str) -> bool:
    home = next(base for base in kind.__mro__ if name in vars(base))
    return home.__module__.startswith(("torch.utils.data", "torchdata.stateful_dataloader"))


class _TakesOff(DataLoader[Any]):
    """Stands below the user's class."""

    _taken_off: deque[Tensor]

    def _get_iterator(self) -> Any:
        self._taken_off = deque[Tensor]()
        return _Plain(super()._get_iterator(), self._taken_off)


class _Plain:
    def __init__(self, batches: Any, taken: deque[Tensor]) -> None:
        self._batches, self._taken = batches, taken

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        batch = next(self._batches)
        self._taken.append(batch.indices)
        return batch.batch

    def __len__(self) -> int:
        return len(self._batches)

    def __getattr__(self, name: str) -> Any:
        if name == "_batches":
            raise AttributeError(name)
        return getattr(self._batches, name)  # persistent workers start again with `_reset`


class _PutsBack(DataLoader[Any]):
    """Stands above the user's class."""

    def __iter__(self) -> Any:
        for batch in super().__iter__():
            taken = getattr(self, "_taken_off", deque[Tensor]())
            if len(taken) != 1:
                raise TypeError(
                    f"{type(self).__name__}.__iter__ must yield one batch for each that it fetches, so that "
                    f"the samples of a batch are known, but it fetched {len(taken)} for one: use "
                    "torch.utils.data.DataLoader."
                )
            yield IndexedBatch(batch, taken.pop())
