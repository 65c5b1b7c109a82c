"""Finds the group of each sample in a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import lightning.pytorch as pl
from torch import Tensor

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
