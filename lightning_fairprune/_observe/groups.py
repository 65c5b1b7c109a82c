"""Finds the group of each sample in a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, SequentialSampler

LogitsFn = Callable[[pl.LightningModule, Any], tuple[Tensor, Tensor]]

# jsonargparse takes the first type that fits, and builds objects where a callable returns a class.
GroupBy = Callable[[Any], Any] | int | str


def groups_of(batch: Any, group_by: GroupBy | None) -> Tensor | None:
    """Returns the group ids, int [B], that `group_by` finds in a batch; None without it."""
    if group_by is None:
        return None
    if callable(group_by):
        group = group_by(batch)
    else:
        named = isinstance(group_by, str) and not isinstance(batch, Mapping)
        try:
            group = getattr(batch, str(group_by)) if named else batch[group_by]
        except (AttributeError, LookupError, TypeError) as error:
            raise ValueError(
                f"`group_by` must be a key or position in the batch, or a function of it, but a "
                f"{type(batch).__name__} has no {group_by!r}: put the group ids there."
            ) from error
    if not isinstance(group, Tensor) or group.ndim != 1 or group.is_floating_point():
        raise ValueError(
            "`group_by` must give one integer group id per sample, got "
            f"{getattr(group, 'dtype', type(group).__name__)} {list(getattr(group, 'shape', []))}."
        )
    return group


class PlacedGroups:
    """The groups of the samples of one validation loader, by their place in its data set.

    Args:
        group: int64 [N], one for each sample of the data set, in [0, G].
        dataloader_idx: the loader; the samples of others are in no group, which is G, their maximum.
    """

    def __init__(self, group: Tensor, dataloader_idx: int) -> None:
        self.group, self._loader = group, dataloader_idx
        self._nothing = int(group.max())
        self._batches: list[Tensor] = []

    def begin(self, loaders: Sequence[Any], device: torch.device) -> None:
        """Finds the groups of every batch of a validation; raises if its loader draws other samples."""
        batches = batches_in_order(loaders[self._loader])
        places = torch.tensor([place for batch in batches for place in batch])
        if len(places) and int(places.max()) >= len(self.group):
            raise ValueError(
                f"the validation set must have the {len(self.group)} samples whose groups were discovered, got one "
                f"of index {int(places.max())}."
            )
        sizes = [len(batch) for batch in batches]
        self._batches = list(torch.split(self.group[places].to(device), sizes))

    def of(self, batch_idx: int, dataloader_idx: int, target: Tensor) -> Tensor:
        """Returns the groups, int64 [B], of a batch with these targets."""
        if dataloader_idx != self._loader:
            return torch.full((len(target),), self._nothing, device=target.device)
        group = self._batches[batch_idx]
        if len(group) != len(target):
            raise ValueError(
                f"batch {batch_idx} of the validation must have the {len(group)} samples that its sampler drew, got "
                f"{len(target)}: groups that are discovered need a collate function and a step that keep them all."
            )
        return group


def batches_in_order(loader: Any) -> list[list[int]]:
    """Returns the samples of each batch of a loader that always draws the same; raises for any other."""
    batches = loader.batch_sampler if isinstance(loader, DataLoader) else None
    if type(batches) is BatchSampler:
        sampler = batches.sampler
        if isinstance(sampler, SequentialSampler) or (
            isinstance(sampler, DistributedSampler) and not sampler.shuffle
        ):
            return [list(batch) for batch in batches]
    found = getattr(batches, "sampler", batches)
    raise ValueError(
        "groups that are discovered belong to places in the validation set, so its loader must be a DataLoader with "
        f"shuffle=False and no sampler of your own, got {type(loader).__name__} with {type(found).__name__}."
    )
