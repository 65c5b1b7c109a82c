"""A data set whose batches carry the indices of their samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset


class IndexedBatch(NamedTuple):
    """A batch and the dataset index of each sample; a named tuple, so that pinning memory converts its parts."""

    batch: Any
    indices: Tensor


class _Fetched(NamedTuple):
    samples: Any
    indices: list[int]


class View(Dataset[Any]):
    """A part of the user's data set that passes for it.

    What is read or set on it is read or set on the user's: a ``worker_init_fn`` opens files on
    ``get_worker_info().dataset`` that `__getitem__` reads. `isinstance` finds the user's class.

    Args:
        dataset: the user's.
        part: indices of its samples; None for all.
    """

    __users: Any
    __part: Sequence[int] | None

    def __init__(self, dataset: Any, part: Sequence[int] | None = None) -> None:
        object.__setattr__(self, "_View__users", dataset)
        object.__setattr__(self, "_View__part", part)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(object.__getattribute__(self, "_View__users"))

    def __reduce__(self) -> Any:
        return type(self), (self.__users, self.__part)

    def __len__(self) -> int:
        return len(self.__users if self.__part is None else self.__part)

    def __getitem__(self, index: int) -> Any:
        return self.__users[index if self.__part is None else self.__part[index]]

    def __getitems__(self, indices: list[int]) -> Any:
        places = indices if self.__part is None else [self.__part[i] for i in indices]
        fetch = getattr(self.__users, "__getitems__", None)
        return fetch(places) if fetch else [self.__users[i] for i in places]

    def __getattr__(self, name: str) -> Any:
        # No dunders: pickle probes for them before there is a data set.
        if name.startswith(("__", "_View__")):
            raise AttributeError(name)
        return getattr(self.__users, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.__users, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self.__users, name)


class IndexView(View):
    """A view that fetches samples together with their indices, so that no order of workers can mix them up."""

    def __getitems__(self, indices: list[int]) -> _Fetched:
        return _Fetched(super().__getitems__(indices), indices)


class IndexCollate:
    """The user's collate function, followed by the indices."""

    def __init__(self, collate: Callable[[Any], Any]) -> None:
        self.collate = collate

    def __call__(self, fetched: _Fetched) -> IndexedBatch:
        return IndexedBatch(self.collate(fetched.samples), torch.as_tensor(fetched.indices))
