"""A data set whose batches carry the index of each of their samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import (
    Dataset,
)


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
