"""Groups that are discovered at the end of a warm-up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lightning_fairprune._lightning.outside_fit import logits_of
from lightning_fairprune._loading.source import TrainSource
from lightning_fairprune._observe.combined import loaded
from lightning_fairprune._observe.groups import PlacedGroups, batches_in_order
from lightning_fairprune._observe.observer import logits_fn_of
from lightning_fairprune.callbacks._data.score_pass import (
    check_same_labels,
    training_loader,
    whole_weights,
)
from lightning_fairprune.callbacks._data.settings import DataSettings
from lightning_fairprune.counts import ClassCounts, count
from lightning_fairprune.groups import assign, discover
from lightning_fairprune.records.dynamics import Dynamics
from lightning_fairprune.scoring.run import features_pass
from lightning_fairprune.scoring.wanted import layer_of
from lightning_fairprune.selection.decision import needs_recall

SIGNALS = ("correct", "el2n")
"""What the warm-up records to discover groups."""


class Found(NamedTuple):
    """Discovered groups.

    Args:
        group: of each training sample, int64 [N]; -1 where it has no class.
        classes: the class of each group, int64 [G].
        validation: group of each validation sample, int64 [M], G where its class has none; None if no recalls are
            needed.
        counts: of that validation by group, with the weights at the end of the warm-up; None likewise.
    """

    group: Tensor
    classes: Tensor
    validation: Tensor | None = None
    counts: ClassCounts | None = None

    def placed(self, dataloader_idx: int) -> PlacedGroups | None:
        """Returns the groups of the validation samples, for counting."""
        return None if self.validation is None else PlacedGroups(self.validation, dataloader_idx)

    def state_dict(self) -> dict[str, Any]:
        """Returns what a resumed fit needs: the decision saves the groups of the training samples."""
        return {"classes": self.classes, "validation": self.validation}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any], group: Tensor) -> Found:
        """Returns what `state_dict` was taken of."""
        return cls(group, state["classes"], state["validation"])


class Discovery:
    """The passes of one fit that discover groups: checked before training starts, run at the end of the warm-up."""

    def __init__(self, settings: DataSettings, trainer: pl.Trainer, source: TrainSource) -> None:
        wanted = settings.discovered
        assert wanted is not None
        self._settings, self._wanted, self._trainer = settings, wanted, trainer
        whole_weights("group_by", trainer, "give groups that are labelled, or train with DDP")
        self._logits_fn = logits_fn_of(trainer)
        if self._logits_fn is None:
            logits_of(trainer.lightning_module)  # raises if no step computes them
        layer_of(trainer.lightning_module, wanted.layer)
        self._loader = training_loader("group_by", wanted.dataloader, trainer, source)

    def run(self, dynamics: Dynamics, target: Tensor) -> Found | None:
        """Returns the groups of the samples with these labels, -1 where unknown; None if no class is split."""
        wanted = self._wanted
        seen = self._pass(self._loader)
        check_same_labels("group_by", seen["target"], target)
        group = discover(
            dynamics,
            seen["features"],
            target,
            most=wanted.most,
            min_size=wanted.min_size,
            separation=wanted.separation,
            gap=wanted.gap,
        )
        group = self._trainer.strategy.broadcast(group)
        known = group >= 0
        classes = torch.zeros(int(group.max()) + 1, dtype=torch.int64)
        classes[group[known]] = target[known]
        split = list(dict.fromkeys(classes[1:][classes.diff() == 0].tolist()))
        if not split:
            rank_zero_info("DataPruning: no class has a group that lies apart and is learnt worse.")
            return None
        rank_zero_info(
            f"DataPruning: {len(split)} of {len(classes) - int((classes.diff() == 0).sum())} classes have groups that "
            f"lie apart and are learnt worse: {', '.join(map(str, split[:10]))}{', ...' if len(split) > 10 else ''}."
        )
        if not needs_recall(self._settings.quota):
            return Found(group, classes)
        loader = loaded(self._trainer)[self._settings.recall_dataloader]
        batches_in_order(loader)
        other = self._pass(loader)
        of = assign(seen["features"], target, group, other["features"], other["target"])
        of = self._trainer.strategy.broadcast(of.masked_fill(of < 0, len(classes)))
        right, support = count(other["correct"] > 0.5, of, len(classes))
        return Found(group, classes, of, ClassCounts(right, support))

    def _pass(self, loader: Any) -> dict[str, Tensor]:
        module = self._trainer.lightning_module
        return features_pass(
            module, loader, self._wanted.layer, signals=("correct",), logits_fn=self._logits_fn
        )
