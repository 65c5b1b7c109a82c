"""Which group each sample of a batch belongs to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_fairprune._model.batches import Batch

Groups = Callable[[Any], Tensor]


def parts(
    batch: Batch, raw: Any, groups: Groups | None, num_groups: int
) -> list[tuple[int, Batch]]:
    """Returns the samples of each group that is in the batch, lowest group first."""
    ids = _ids(batch, raw, groups, num_groups)
    rows = torch.split(ids.argsort(stable=True), ids.bincount(minlength=num_groups).tolist())
    return [(g, batch.rows(index)) for g, index in enumerate(rows) if len(index)]


def check_present(seen: Tensor) -> None:
    missing = (seen == 0).nonzero().flatten().tolist()
    if missing:
        raise ValueError(
            f"`batches` must hold samples of all {len(seen)} groups, got none of group {missing[0]}"
            f"{f' and {len(missing) - 1} more' if missing[1:] else ''}: take more batches."
        )


def _ids(batch: Batch, raw: Any, groups: Groups | None, num_groups: int) -> Tensor:
    ids = raw[1] if groups is None else groups(raw)
    asked = "the target must hold class ids" if groups is None else "`groups` must return group ids"
    instead = "; give `groups`" if groups is None else ""
    if not isinstance(ids, Tensor):
        raise TypeError(f"{asked}, an integer tensor [B], got {type(ids).__name__}{instead}.")
    if ids.is_floating_point() or ids.is_complex() or ids.shape != (batch.size,):
        raise ValueError(
            f"{asked}, an integer tensor [B], got {ids.dtype} of shape {list(ids.shape)} for B = "
            f"{batch.size}{instead}."
        )
    ids = ids.detach().long().cpu()
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= num_groups:
        raise ValueError(
            f"group ids must lie in [0, {num_groups}), got {low if low < 0 else high}."
        )
    return ids
