"""Sums, maxima and comparisons over the ranks of a Trainer."""

from __future__ import annotations

from collections.abc import Callable

import lightning.pytorch as pl
import torch
from torch import Tensor


def sum_over_ranks(trainer: pl.Trainer) -> Callable[[Tensor], Tensor]:
    """Returns the function that sums a tensor over all ranks without touching the original."""
    return lambda tensor: _reduced(trainer, tensor, "sum")


def max_over_ranks(trainer: pl.Trainer) -> Callable[[Tensor], Tensor]:
    """Returns the function that takes the maximum over all ranks."""
    return lambda tensor: _reduced(trainer, tensor, "max")


def gather_over_ranks(trainer: pl.Trainer) -> Callable[[Tensor], Tensor]:
    """Returns the function from a tensor [...], of one shape on all W ranks, to those of all, [W, ...]."""

    def gather(tensor: Tensor) -> Tensor:
        if trainer.world_size == 1:
            return tensor[None]
        gathered: Tensor = trainer.strategy.all_gather(tensor)
        return gathered.reshape(trainer.world_size, *tensor.shape)

    return gather


def check_same_on_all_ranks(trainer: pl.Trainer, indices: Tensor) -> None:
    """Raises a RuntimeError on every rank if any of them would keep other samples than rank 0."""
    if trainer.world_size == 1:
        return
    differs = not torch.equal(trainer.strategy.broadcast(indices), indices)
    flag = torch.tensor(int(differs), device=trainer.strategy.root_device)
    if max_over_ranks(trainer)(flag):
        raise RuntimeError(
            "the ranks would keep different samples: `score` and `quota` must depend on their "
            "arguments alone."
        )


def _reduced(trainer: pl.Trainer, tensor: Tensor, how: str) -> Tensor:
    if trainer.world_size == 1:
        return tensor.clone()
    reduced = trainer.strategy.reduce(tensor.clone(), reduce_op=how)
    assert isinstance(reduced, Tensor)
    return reduced
