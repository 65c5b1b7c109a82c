"""The arguments of RecallMonitor: checked once, read by all its parts."""

from __future__ import annotations

import os
from dataclasses import dataclass

from lightning_fairprune._observe.groups import GroupBy, LogitsFn
from lightning_fairprune.callbacks._arguments import at_least
from lightning_fairprune.callbacks._monitor.reference import Reference


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MonitorSettings:
    """The arguments of :class:`~lightning_fairprune.RecallMonitor`, with names as tuples."""

    num_classes: int | None
    reference: Reference
    class_names: tuple[str, ...] | None
    group_by: GroupBy | None
    group_names: tuple[str, ...] | None
    dataloader_names: tuple[str, ...] | None
    every_n_epochs: int
    figures: bool
    dirpath: str | os.PathLike[str] | None
    logits_fn: LogitsFn | None

    def __post_init__(self) -> None:
        for name in ("class_names", "group_names", "dataloader_names"):
            names = getattr(self, name)
            object.__setattr__(self, name, None if names is None else tuple(names))
            if names is not None and len(set(names)) < len(names):
                raise ValueError(f"`{name}` must differ from each other, got {list(names)}.")
        if self.num_classes is not None:
            at_least("num_classes", self.num_classes, 1)
            self._check_names(self.num_classes)
        if self.group_names is not None and self.group_by is None:
            raise ValueError("`group_names` needs `group_by`, which says where the groups are.")
        at_least("every_n_epochs", self.every_n_epochs, 1)

    def _check_names(self, num_classes: int) -> None:
        if self.class_names is not None and len(self.class_names) != num_classes:
            raise ValueError(
                f"`class_names` must name each of {num_classes} classes, got "
                f"{len(self.class_names)}."
            )

    def check_classes(self, num_classes: int) -> None:
        """Raises a ValueError if the logits are for another number of classes."""
        if self.num_classes not in (None, num_classes):
            raise ValueError(
                f"`num_classes` is {self.num_classes}, but the logits are for {num_classes}: leave it "
                "out, or check the last layer."
            )
        self._check_names(num_classes)
