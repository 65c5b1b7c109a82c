"""Data pruning in one run: settings, quotas over time, the samples kept last and their scores."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_fairprune._files import (
    RUN_FOLDER,
    read_tensors,
    run_file,
    text_or_none,
    understanding,
    whole_number,
    whole_numbers,
    write_json,
    write_tensors,
)
from lightning_fairprune.records.label_errors import LabelErrors
from lightning_fairprune.selection import Selection, stalls
from lightning_fairprune.selection.decision import Estimate

_KIND = "PruningRecord"
_FILE = "pruning.safetensors"
_ERRORS = "label_errors/"
_ESTIMATED = ("recall", "quota", "held")


@dataclass(frozen=True, slots=True, eq=False)
class PruningRecord:
    """What data pruning did in one run.

    Args:
        selection: the samples kept last.
        target: class (or group) of every sample, int64 [N]; -1 for a sample that cannot be kept.
        score: score of every sample, float [N], higher = harder; None without a score.
        history: every estimate of the quotas.
        settings: the arguments of the callback as text, numbers and lists of them.
        training: the name of the training; None if unknown.
        label_errors: the estimate of wrong labels; None without one.
        group_class: class of each group that was discovered, int64 [G]; None without them.

    Raises:
        ValueError: If `target` or `score` are not for the samples of `selection`.

    Example:
        >>> from lightning_fairprune import select
        >>> target = torch.tensor([0, 0, 0, 1])
        >>> kept = select(target, torch.tensor([2, 1]))
        >>> PruningRecord(kept, target, settings={"density": 0.75}).dropped.numel()
        1
    """

    selection: Selection
    target: Tensor
    score: Tensor | None = None
    history: tuple[Estimate, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    training: str | None = None
    label_errors: LabelErrors | None = None
    group_class: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("target", "score"):
            value = getattr(self, name)
            if value is not None and value.shape != (self.selection.num_samples,):
                raise ValueError(
                    f"`{name}` must be [{self.selection.num_samples}], one for each sample that was "
                    f"selected from, got {list(value.shape)}."
                )
        errors, n = self.label_errors, self.selection.num_samples
        if errors is not None and ((errors.suspects < 0) | (errors.suspects >= n)).any():
            raise ValueError(f"suspects of `label_errors` must be samples in [0, {n}).")

    @property
    def dropped(self) -> Tensor:
        """Samples not in `selection`, int64, sorted."""
        return (~self.selection.mask()).nonzero().squeeze(1)

    @property
    def by_group(self) -> bool:
        """Whether quotas were of groups: labelled ones, or discovered ones if any were found."""
        asked = self.settings.get("group_by")
        found = self.group_class is not None
        return found or (asked is not None and not str(asked).startswith("Discovered("))

    @property
    def frozen(self) -> list[int]:
        """Classes (or groups) that more data did not help, so that they were held at their proportional share."""
        return stalls.frozen(self.history)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes `pruning.safetensors`, the whole record, and `pruning.json`, a readable part; makes the folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        chosen = self.selection
        tensors = {"indices": chosen.indices, "quota": chosen.quota, "sizes": chosen.sizes}
        tensors["target"] = self.target.to(torch.int32)
        if self.score is not None:
            tensors["score"] = self.score.to(torch.float32)
        if self.group_class is not None:
            tensors["group_class"] = self.group_class
        for i, estimate in enumerate(self.history):
            for name in _ESTIMATED:
                value = getattr(estimate, name)
                if value is not None:
                    tensors[f"history/{i}/{name}"] = value
        if self.label_errors is not None:
            found = self.label_errors.tensors()
            tensors |= {f"{_ERRORS}{name}": value.contiguous() for name, value in found.items()}
        about = {
            "settings": dict(self.settings),
            "num_samples": chosen.num_samples,
            "kept": len(chosen),
            "keep": chosen.keep,
            "seed": chosen.seed,
            "repeat": chosen.repeat,
            "distinct": chosen.distinct,
            "epochs": [estimate.epoch for estimate in self.history],
            "training": self.training,
            "frozen": self.frozen,
        }
        write_tensors(folder / _FILE, _KIND, tensors, {"record": json.dumps(about)})
        classes: dict[str, Any] = {"quota": chosen.quota.tolist(), "sizes": chosen.sizes.tolist()}
        if self.label_errors is not None:
            classes |= {"label_errors": self.label_errors.readable()}
        write_json(folder / "pruning.json", _KIND, {**about, **classes})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PruningRecord:
        """Reads what `save` wrote.

        Args:
            path: the folder of a run, the `folder` of `save`, or the safetensors file.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is damaged, of another kind or version, or contradicts itself.
        """
        path = Path(path)
        if path.is_dir():
            path = run_file(path, [_FILE]) or path / RUN_FOLDER / _FILE
        tensors, metadata = read_tensors(path, _KIND)
        with understanding(path):
            about = json.loads(metadata["record"])
            values: dict[str, Any] = {name: tensors[name] for name in ("indices", "quota", "sizes")}
            values |= {name: whole_number(name, about[name]) for name in ("num_samples", "seed")}
            values["keep"] = str(about["keep"])
            values["repeat"] = whole_number(
                "repeat", about.get("repeat", 1)
            )  # older ones have none
            chosen = Selection(**values)
            history = tuple(
                Estimate(
                    whole_number("epochs", epoch),
                    *(tensors.get(f"history/{i}/{name}") for name in _ESTIMATED),
                )
                for i, epoch in enumerate(about["epochs"])
            )
            target = whole_numbers("target", tensors["target"])
            settings, score = dict(about["settings"]), tensors.get("score")
            training = text_or_none(about, "training")
            found = {
                n.removeprefix(_ERRORS): t for n, t in tensors.items() if n.startswith(_ERRORS)
            }
            errors = LabelErrors(**found) if found else None
            of = tensors.get("group_class")
            return cls(chosen, target, score, history, settings, training, errors, of)
