"""The indices that a sampler of the user's own draws in an epoch."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from operator import index
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from lightning_fairprune._model.borrowed import isolated_rng


class UsersStream:
    """Draws epochs with a sampler, or a batch sampler, of the user's own.

    An epoch depends on the seed, the epoch and the attributes of the sampler alone: it is drawn by a copy, whose
    generators, and the global ones, start from a seed of the epoch. So it is the same on all ranks, when it is resumed,
    and when others draw with the sampler.

    Args:
        sampler: with a length; yields indices, or batches of them.
        size: N of the data set.
        batched: whether it yields batches, all of the size of the first but the last.
        seed: of the order.
    """

    def __init__(self, sampler: Any, size: int, *, batched: bool, seed: int) -> None:
        self.sampler, self._size, self._batched, self._seed = sampler, size, batched, seed

    def epoch(self, number: int) -> Tensor:
        """Returns the indices of an epoch, int64 [n]."""
        with _seeded(self._seed + number):
            sampler = _fresh(self.sampler, self._seed, number)
            drawn = list(islice(iter(sampler), len(sampler)))
        if self._batched:
            sizes = [len(batch) for batch in drawn]
            if len(set(sizes[:-1])) > 1 or sizes[-1:] > sizes[:1]:
                raise TypeError(
                    f"{self._name} yields batches of {min(sizes)} to {max(sizes)} samples, and can be restricted to "
                    "the kept samples only if all but the last have the same size: give the DataLoader a "
                    "`batch_size` instead."
                )
            drawn = [i for batch in drawn for i in batch]
        try:
            found = torch.tensor([index(i) for i in drawn], dtype=torch.int64)
        except TypeError:
            found = torch.tensor([-1])
        if len(found) and not 0 <= int(found.min()) <= int(found.max()) < self._size:
            raise TypeError(
                f"{self._name} must yield indices from 0 to {self._size - 1} to be restricted to the kept samples: "
                "use a sampler of torch instead."
            )
        return found

    @property
    def _name(self) -> str:
        return f"the {'batch ' if self._batched else ''}sampler {type(self.sampler).__name__}"


def batch_size_of(batch_sampler: Any) -> int:
    """Returns the number of samples in a batch of a batch sampler of the user's own."""
    # Not its attribute `batch_size`, which may count something else, such as batches of another sampler.
    with _seeded(0):
        return len(next(iter(_fresh(batch_sampler, 0, 0)), ())) or 1


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with isolated_rng():
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        random.seed(seed)
        yield


def _fresh(value: Any, seed: int, epoch: int, *, outer: bool = True) -> Any:
    """Returns a copy whose draws depend on the epoch alone and change nothing of the user's."""
    if isinstance(value, torch.Generator):
        return torch.Generator().manual_seed((value.initial_seed() + epoch) % 2**63)
    if isinstance(value, np.random.RandomState):
        return np.random.RandomState((seed + epoch) % 2**32)
    if isinstance(value, np.random.Generator):
        return np.random.default_rng(abs(seed + epoch))
    if isinstance(value, random.Random):
        return random.Random(seed + epoch)
    if isinstance(value, Tensor | np.ndarray):
        return copy.deepcopy(value)
    if isinstance(value, list):  # of indices, which may be shuffled in place
        return [_fresh(v, seed, epoch, outer=False) if isinstance(v, list) else v for v in value]
    if isinstance(value, dict):
        return {key: _fresh(v, seed, epoch, outer=False) for key, v in value.items()}
    if not outer and not isinstance(value, Sampler):
        return value
    sampler = copy.copy(value)
    for name, part in getattr(sampler, "__dict__", {}).items():
        vars(sampler)[name] = _fresh(part, seed, epoch, outer=False)
    if hasattr(sampler, "set_epoch"):
        sampler.set_epoch(epoch)
    return sampler
