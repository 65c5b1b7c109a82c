"""A data set whose batches carry the indices of their samples."""

from __future__ import annotations

from collections.abc import Callable
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


class IndexView(Dataset[Any]):
    """A dataset that fetches samples together with their indices, so that no order of workers can mix them up."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        # Not for the loader: the user's callback may read single samples.
        return self.dataset[index]

    def __getitems__(self, indices: list[int]) -> _Fetched:
        fetch = getattr(self.dataset, "__getitems__", None)
        samples = fetch(indices) if fetch else [self.dataset[i] for i in indices]
        return _Fetched(samples, indices)

    def __getattr__(self, name: str) -> Any:
        # A worker_init_fn may read attributes of the dataset. No dunders: pickle probes for them
        # before `dataset` exists.
        if name.startswith("__") or name == "dataset":
            raise AttributeError(name)
        return getattr(self.dataset, name)


class IndexCollate:
    """The user's collate function, followed by the indices."""

    def __init__(self, collate: Callable[[Any], Any]) -> None:
        self.collate = collate

    def __call__(self, fetched: _Fetched) -> IndexedBatch:
        return IndexedBatch(self.collate(fetched.samples), torch.as_tensor(fetched.indices))
