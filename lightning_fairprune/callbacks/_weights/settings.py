"""The arguments of WeightPruning: checked once, read by all its parts, and written as text for people."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import lightning.pytorch as pl

from lightning_fairprune._observe.groups import GroupBy
from lightning_fairprune.callbacks._arguments import function, number
from lightning_fairprune.callbacks._weights.plan import Timing
from lightning_fairprune.records.settings import name_of

# Not a Tensor, which jsonargparse would try to build.
LossFn = Callable[[pl.LightningModule, Any], Any]

_NUMBERS = ("sparsity", "start", "end", "every", "floor", "num_batches", "rewind", "seed")


@dataclass(frozen=True, kw_only=True, eq=False)
class WeightSettings:
    """The arguments of :class:`~lightning_fairprune.WeightPruning`."""

    criterion: Callable[..., Any]
    sparsity: float
    schedule: Callable[..., Any]
    start: int | float
    end: int | float
    every: int
    interval: Literal["epoch", "step"]
    scope: Callable[..., Any]
    include: list[str] | None
    exclude: list[str] | None
    keep_classifier: bool
    floor: int
    num_batches: int
    dataloader: Any
    loss_fn: LossFn | None
    criterion_options: dict[str, Any]
    group_by: GroupBy | None
    rewind: Literal["start"] | int | None
    seed: int

    def __post_init__(self) -> None:
        for name in _NUMBERS:  # neither checkpoints nor records can hold numbers of numpy
            value = getattr(self, name)
            object.__setattr__(self, name, value.item() if hasattr(value, "item") else value)
        self.timing.check()
        function("criterion", self.criterion, "criteria.magnitude")
        function("scope", self.scope, "masks.globally")
        number("floor", self.floor, whole=True)
        number("num_batches", self.num_batches, whole=True)
        if self.floor < 0:
            raise ValueError(f"`floor` must be 0 or more weights a layer, got {self.floor}.")
        if self.num_batches < 1:
            raise ValueError(f"`num_batches` must be at least 1, got {self.num_batches}.")
        rewind = self.rewind
        epochs = isinstance(rewind, int) and not isinstance(rewind, bool) and rewind >= 0
        if rewind not in (None, "start") and not epochs:
            raise ValueError(f"`rewind` must be None, 'start' or 0 or more epochs, got {rewind!r}.")

    @property
    def timing(self) -> Timing:
        """The arguments that say when."""
        return Timing(
            self.sparsity,
            self.schedule,
            self.start,
            self.end,
            self.every,
            self.interval,
            self.rewind,
        )

    @property
    def rewind_epoch(self) -> int:
        """Epochs that were done when the weights were what a rewind makes them."""
        return self.rewind if isinstance(self.rewind, int) else 0

    def as_text(self) -> dict[str, Any]:
        """Returns what the fit was asked for, as text, numbers and lists of them."""
        return {
            "criterion": name_of(self.criterion),
            "criterion_options": [f"{k}={v!r}" for k, v in self.criterion_options.items()],
            "sparsity": self.sparsity,
            "schedule": name_of(self.schedule),
            "start": self.start,
            "end": self.end,
            "every": self.every,
            "interval": self.interval,
            "scope": name_of(self.scope),
            "include": self.include,
            "exclude": self.exclude,
            "keep_classifier": self.keep_classifier,
            "floor": self.floor,
            "num_batches": self.num_batches,
            "group_by": name_of(self.group_by),
            "rewind": self.rewind,
            "seed": self.seed,
        }
