"""The arguments of WeightPruning: checked once, read by all its parts, and written as text for people."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import lightning.pytorch as pl

from lightning_fairprune._observe.groups import GroupBy
from lightning_fairprune.callbacks._arguments import as_text, at_least, function, number, one_of

# Not a Tensor, which jsonargparse would try to build.
LossFn = Callable[[pl.LightningModule, Any], Any]

_NUMBERS = ("sparsity", "start", "end", "every", "floor", "num_batches", "rewind", "seed")


@dataclass(frozen=True, kw_only=True, eq=False)
class WeightSettings:
    """The arguments of :class:`~lightning_fairprune.WeightPruning`."""

    criterion: Callable[..., Any]
    criterion_options: dict[str, Any]
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
    group_by: GroupBy | None
    rewind: Literal["start"] | int | None
    seed: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "criterion_options", dict(self.criterion_options or {}))
        for name in _NUMBERS:  # neither checkpoints nor records can hold numbers of numpy
            value = getattr(self, name)
            object.__setattr__(self, name, value.item() if hasattr(value, "item") else value)
        self._check_timing()
        function("criterion", self.criterion, "criteria.magnitude")
        function("scope", self.scope, "masks.globally")
        number("floor", self.floor, whole=True)
        number("num_batches", self.num_batches, whole=True)
        at_least("floor", self.floor, 0, "weights a layer")
        at_least("num_batches", self.num_batches, 1)
        rewind = self.rewind
        epochs = isinstance(rewind, int) and not isinstance(rewind, bool) and rewind >= 0
        if rewind not in (None, "start") and not epochs:
            raise ValueError(f"`rewind` must be None, 'start' or 0 or more epochs, got {rewind!r}.")

    def _check_timing(self) -> None:
        function("schedule", self.schedule, "masks.schedules.cubic")
        for name in ("sparsity", "start", "end"):
            number(name, getattr(self, name))
        number("every", self.every, whole=True)
        if not 0 < self.sparsity < 1:
            raise ValueError(
                f"`sparsity` must be in (0, 1), a fraction of weights to remove, got {self.sparsity}."
            )
        for name, value in (("start", self.start), ("end", self.end)):
            if isinstance(value, float) and not 0 <= value < 1:
                raise ValueError(
                    f"`{name}` must be a whole number of {self.interval}s or a fraction of training in "
                    f"[0, 1), got {value}."
                )
            at_least(name, value, 0, f"{self.interval}s")
        if type(self.start) is type(self.end) and self.end < self.start:
            raise ValueError(f"`end` must not be before `start`, got {self.end} and {self.start}.")
        at_least("every", self.every, 1, self.interval)
        one_of("interval", self.interval, ("epoch", "step"))

    @property
    def rewind_epoch(self) -> int:
        """Number of epochs before the weights that a rewind puts back."""
        return self.rewind if isinstance(self.rewind, int) else 0

    def as_text(self) -> dict[str, Any]:
        """Returns what the fit was asked for, as text, numbers and lists of them."""
        options = [f"{name}={value!r}" for name, value in self.criterion_options.items()]
        text = as_text(self, without=("dataloader", "loss_fn"))
        return text | {"criterion_options": options}
