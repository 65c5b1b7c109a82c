"""The part of a data set that one of several processes scores."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.utils.data import DataLoader

from lightning_fairprune._loading.index import IndexedBatch
from lightning_fairprune._loading.rebuild import (
    check_restrictable,
    copied,
    drawing,
    sampled_dataset,
)
from lightning_fairprune._model.borrowed import device_of

__all__ = ["Share"]

_ROWS_AT_ONCE = 65_536  # of what the processes add up: bounds the memory it takes on the device


class Share:
    """The batches of this process: every `world`-th of all batches in the order of the data set."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        if not isinstance(loader, DataLoader):
            raise TypeError(
                f"a scoring pass needs one torch DataLoader, got {type(loader).__name__}."
            )
        check_restrictable(loader)
        self._loader = loader
        self._dataset = sampled_dataset(loader)
        self.size = len(self._dataset)  # type: ignore[arg-type]
        self.batch_size = drawing(loader).batch_size
        together = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if together else 0
        self.world = dist.get_world_size() if together else 1
        # Whole batches of the same samples on any number of processes, so that results have the same bits.
        self._starts = range(self.rank * self.batch_size, self.size, self.world * self.batch_size)
        self.batches = len(self._starts)
        if math.ceil(self.size / self.batch_size) < self.world:
            raise ValueError(
                f"the data set has {self.size} samples, too few for a batch of {self.batch_size} on "
                f"each of {self.world} processes: use fewer processes or smaller batches."
            )

    def iterate(self, done: int) -> Iterator[IndexedBatch]:
        """Yields the batches after the first `done`."""
        samples = [
            list(range(start, min(start + self.batch_size, self.size)))
            for start in self._starts[done:]
        ]
        if not samples:
            return
        of_workers = {"generator": None, "persistent_workers": False, "in_order": True}
        yield from copied(
            self._loader,
            carry_index=True,
            batch_size=None,
            drop_last=False,
            batch_sampler=samples,
            **{name: value for name, value in of_workers.items() if hasattr(self._loader, name)},
        )

    def gathered(self, values: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
        """Returns values [N, ...] with the rows of all processes, on the CPU."""
        if self.world == 1:
            return {name: value.cpu() for name, value in values.items()}
        device = device_of(model)
        whole = {}
        for name, value in values.items():
            parts = []
            for start in range(0, len(value), _ROWS_AT_ONCE):
                # A copy, in which the rows of the others are 0.
                part = value[start : start + _ROWS_AT_ONCE].to(device, copy=True)
                dist.all_reduce(part)
                parts.append(part.cpu())
            whole[name] = torch.cat(parts)
        return whole
