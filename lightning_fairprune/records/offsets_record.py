"""The offsets that were fitted at the end of a run, and what they are worth."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_fairprune._files import (
    file_of_run,
    read_json,
    text_or_none,
    understanding,
    whole_number,
    write_json,
)
from lightning_fairprune.counts import ClassCounts

_KIND = "OffsetsRecord"
FILE = "offsets.json"


@dataclass(frozen=True, slots=True, eq=False)
class OffsetsRecord:
    """One number for each class to add to the logits of the last validated weights, and the recalls with and without.

    Args:
        offsets: float32 [K].
        name: of the validation data, such as ``"val"``.
        epoch: training epoch of the weights, counted from 1.
        step: optimiser steps done before the validation.
        max_average_loss: how much of the average recall the worst class may cost.
        plain: the class counts without offsets.
        fitted: those with offsets, each sample under offsets that were fitted on others.
        plain_groups: the counts of groups without offsets; None without groups.
        fitted_groups: those with offsets.
        training: the name of the training; None if unknown.

    Raises:
        ValueError: If the offsets are not finite, or counts are of other classes or other samples.

    Example:
        >>> plain = ClassCounts(torch.tensor([9, 3]), torch.tensor([10, 10]))
        >>> fitted = ClassCounts(torch.tensor([8, 6]), torch.tensor([10, 10]))
        >>> record = OffsetsRecord(torch.tensor([-0.5, 0.5]), "val", 3, 90, 0.01, plain, fitted)
        >>> round(record.threshold, 6), round(record.representation, 6)
        (0.3, 0.1)
    """

    offsets: Tensor
    name: str
    epoch: int
    step: int
    max_average_loss: float
    plain: ClassCounts
    fitted: ClassCounts
    plain_groups: ClassCounts | None = None
    fitted_groups: ClassCounts | None = None
    training: str | None = None

    def __post_init__(self) -> None:
        if self.offsets.ndim != 1 or not bool(self.offsets.isfinite().all()):
            raise ValueError("`offsets` must be one finite number for each class, [K].")
        size = len(self.offsets)
        if size != self.plain.num_classes:
            raise ValueError(
                f"`offsets` must have one number for each of {self.plain.num_classes} classes, got {size}."
            )
        pairs = [(self.plain, self.fitted), (self.plain_groups, self.fitted_groups)]
        for one, other in pairs:
            if (one is None) != (other is None) or (
                one is not None
                and other is not None
                and not torch.equal(one.support, other.support)
            ):
                raise ValueError("counts with and without offsets must be of the same samples.")

    @property
    def worst(self) -> tuple[float, float]:
        """The lowest recall without and with offsets, of the groups if there are any."""
        if self.plain_groups is not None and self.fitted_groups is not None:
            return self.plain_groups.worst, self.fitted_groups.worst
        return self.plain.worst, self.fitted.worst

    @property
    def threshold(self) -> float:
        """How much of the distance from the worst to the average recall goes with offsets, at no training."""
        return self.worst[1] - self.worst[0]

    @property
    def representation(self) -> float:
        """How far the worst recall stays below the average with offsets: what training alone can change."""
        return self.fitted.mean - self.worst[1]

    def state_dict(self) -> dict[str, Any]:
        """Returns all but the name of the training as CPU tensors and primitives, for checkpoints."""
        named = {name: getattr(self, name) for name in _COUNTS}
        counts = {name: None if c is None else (c.tp, c.support) for name, c in named.items()}
        plain = ("offsets", "name", "epoch", "step", "max_average_loss")
        return {name: getattr(self, name) for name in plain} | counts

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> OffsetsRecord:
        """Returns the record that `state_dict` came from."""
        counts = {
            name: None if state[name] is None else ClassCounts(*state[name]) for name in _COUNTS
        }
        return cls(**{**state, **counts})

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes `offsets.json`, whole or not at all; makes the folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        named = {name: getattr(self, name) for name in _COUNTS}
        content = {
            "offsets": self.offsets.tolist(),
            "name": self.name,
            "epoch": self.epoch,
            "step": self.step,
            "max_average_loss": self.max_average_loss,
            "worst": self.worst,
            "average": (self.plain.mean, self.fitted.mean),
            **{name: None if c is None else _numbers(c) for name, c in named.items()},
            "training": self.training,
        }
        write_json(folder / FILE, _KIND, content)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> OffsetsRecord:
        """Reads what `save` wrote.

        Args:
            path: the folder of a run, the `folder` of `save`, or the file.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is damaged, of another kind or version, or contradicts itself.
        """
        file = file_of_run(Path(path), FILE, "RecallOffsets")
        content = read_json(file, _KIND)
        with understanding(file):
            counts = {name: _counts(content[name]) for name in _COUNTS}
            loss = float(content["max_average_loss"])
            if not 0 <= loss <= 1:
                raise ValueError(f"`max_average_loss` must be in [0, 1], got {loss}")
            name = text_or_none(content, "name")
            values = [float(value) for value in content["offsets"]]
            return cls(
                torch.tensor(values),
                name or "val",
                whole_number("epoch", content["epoch"]),
                whole_number("step", content["step"]),
                loss,
                **counts,
                training=text_or_none(content, "training"),
            )


_COUNTS = ("plain", "fitted", "plain_groups", "fitted_groups")


def _numbers(counts: ClassCounts) -> dict[str, Any]:
    return {"tp": counts.tp.tolist(), "support": counts.support.tolist()}


def _counts(numbers: Mapping[str, Any] | None) -> Any:
    if numbers is None:
        return None
    tp, support = (torch.tensor(numbers[k], dtype=torch.int64) for k in ("tp", "support"))
    return ClassCounts(tp, support)
