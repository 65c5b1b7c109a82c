"""Weight pruning in one run: its settings, and the sparsity after every step."""

from __future__ import annotations

import math
import os
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from lightning_fairprune._files import (
    file_of_run,
    read_json,
    text_or_none,
    understanding,
    whole_number,
    write_json,
)

_KIND = "SparsityRecord"
_FILE = "sparsity.json"


class PruneStep(NamedTuple):
    """One pruning of weights.

    Attributes:
        epoch: training epoch, counted from 1; 0 before training.
        step: optimiser steps done before it.
        target: requested sparsity, in [0, 1].
        total: sparsity afterwards, the fraction removed of the weights that may be pruned, in [0, 1].
        layers: sparsity of each pruned parameter, by its name; NaN for one without weights.
        of_all: the fraction removed of all parameters of the model, biases and embeddings among them, in [0, 1];
            None in records of earlier releases.
    """

    epoch: int
    step: int
    target: float
    total: float
    layers: dict[str, float]
    of_all: float | None = None


@dataclass(frozen=True, slots=True, repr=False)
class SparsityRecord:
    """What weight pruning did in one run.

    Args:
        settings: the arguments of the callback as text, numbers and lists of them.
        steps: every pruning, in order.
        training: the name of the training; None if unknown.

    Raises:
        ValueError: If a sparsity is not in [0, 1] or the steps are not in order.

    Example:
        >>> first = PruneStep(2, 100, 0.5, 0.5, {"fc.weight": 0.5})
        >>> last = PruneStep(4, 200, 0.9, 0.9, {"fc.weight": 0.9})
        >>> record = SparsityRecord({"criterion": "magnitude"}, (first, last))
        >>> record
        SparsityRecord(prunings=2, sparsity=0.9)
        >>> record.at(99), record.at(100), record.at(250)
        (0.0, 0.5, 0.9)
    """

    settings: dict[str, Any]
    steps: tuple[PruneStep, ...]
    training: str | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        before = 0
        for i, step in enumerate(self.steps):
            named = {name: getattr(step, name) for name in ("target", "total", "of_all")}
            layers = {f"layers[{name!r}]": v for name, v in step.layers.items() if v == v}
            for name, value in (named | layers).items():
                if value is not None and not 0 <= value <= 1:
                    raise ValueError(
                        f"`{name}` must be a sparsity in [0, 1], got {value} of pruning {i + 1}."
                    )
            if step.step < before:
                raise ValueError(
                    f"`steps` must be in the order in which they took place, got pruning {i + 1} after "
                    f"{step.step} optimiser steps, following one after {before}."
                )
            before = step.step

    def __repr__(self) -> str:
        last = self.steps[-1].total if self.steps else 0.0
        return f"SparsityRecord(prunings={len(self.steps)}, sparsity={last:.6g})"

    def at(self, step: int) -> float:
        """Returns the sparsity after so many optimiser steps, with a pruning directly after the last one."""
        done = bisect_right([pruning.step for pruning in self.steps], step)
        return self.steps[done - 1].total if done else 0.0

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes `sparsity.json`, whole or not at all; makes the folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        steps = [_readable(step) for step in self.steps]
        write_json(
            folder / _FILE,
            _KIND,
            {"settings": self.settings, "steps": steps, "training": self.training},
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SparsityRecord:
        """Reads what `save` wrote.

        Args:
            path: the folder of a run, the `folder` of `save`, or the file.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is damaged, of another kind or version, or contradicts itself.
        """
        file = file_of_run(Path(path), _FILE, "WeightPruning")
        content = read_json(file, _KIND)
        with understanding(file):
            steps = tuple(_step(entry) for entry in content["steps"])
            return cls(dict(content["settings"]), steps, text_or_none(content, "training"))


def _readable(step: PruneStep) -> dict[str, Any]:
    # JSON has no NaN.
    layers = {name: None if math.isnan(value) else value for name, value in step.layers.items()}
    return {**step._asdict(), "layers": layers}


def _step(entry: Mapping[str, Any]) -> PruneStep:
    layers = {
        name: math.nan if value is None else float(value) for name, value in entry["layers"].items()
    }
    target, total = float(entry["target"]), float(entry["total"])
    of_all = entry.get("of_all")  # not in files of earlier releases
    of_all = None if of_all is None else float(of_all)
    epoch, done = (whole_number(name, entry[name]) for name in ("epoch", "step"))
    return PruneStep(epoch, done, target, total, layers, of_all)
