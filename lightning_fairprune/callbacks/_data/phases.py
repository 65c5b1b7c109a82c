"""The two phases of a fit with DataPruning: on all the data, then on the kept samples."""

from __future__ import annotations

from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_fairprune._lightning.snapshot import Snapshot
from lightning_fairprune._loading.labels import labels_of
from lightning_fairprune._loading.source import TrainSource
from lightning_fairprune._observe.warmup import WarmUp
from lightning_fairprune.callbacks._data import checks
from lightning_fairprune.callbacks._data.score_pass import FitPass
from lightning_fairprune.callbacks._data.settings import DataSettings
from lightning_fairprune.records.dynamics import Dynamics
from lightning_fairprune.selection import Selection
from lightning_fairprune.selection.decision import Decision


class Due(NamedTuple):
    """What the end of an epoch asks for."""

    estimate: bool
    draw: bool


class WarmingUp:
    """Trains on all the data and records labels, and what the score needs of each sample.

    Args:
        settings: of the callback.
        trainer: whose fit it is.
        source: where its samples come from.
        epochs: length of the warm-up.
        snapshot: what ``after="restart"`` goes back to; None to continue.
    """

    def __init__(
        self,
        settings: DataSettings,
        trainer: pl.Trainer,
        source: TrainSource,
        epochs: int,
        snapshot: Snapshot | None,
    ) -> None:
        self.snapshot, self._score, self._source = snapshot, settings.score, source
        way = settings.score_pass
        self._pass = None if way is None else FitPass(settings, way, trainer, source)
        self._passed: Dynamics | None = None
        self.observed = WarmUp(
            trainer,
            source,
            epochs,
            score=settings.score if way is None else None,
            group_by=settings.group_by,
            logits_fn=settings.logits_fn,
        )

    @property
    def dynamics(self) -> Dynamics:
        """What was recorded, or what the pass saw."""
        return self.observed.dynamics if self._passed is None else self._passed

    def close(self, decision: Decision) -> None:
        """Gives labels (or groups) and scores to the decision, and frees the device memory."""
        recorder, grouped = self.observed.recorder, self.observed.recorder.group
        target = recorder.target if grouped is None else grouped
        budget, scores = decision.budget(len(target)), None
        if self._pass is not None:
            passed = self._pass.run(recorder.target)
            scores, self._passed = passed.score, passed.dynamics
            seen = recorder.target if passed.target is None else passed.target
            checks.scored(self._score, scores, seen, budget)
            if grouped is None:
                target = self._labels(target) if passed.target is None else passed.target
        elif self._score is not None:
            scores = self._score(recorder.dynamics()).detach().cpu()
            checks.scored(self._score, scores, target, budget)
        elif grouped is None:
            target = self._labels(target)
        if scores is not None:
            target = target.masked_fill(scores.isnan(), -1)
        checks.unobserved(target, budget)
        decision.learn(target, scores, recorder.num_classes if grouped is None else 0)
        recorder.release()
        self._source.carry_index = False

    def _labels(self, target: Tensor) -> Tensor:
        """Adds the labels of those that drop_last or a limit kept away, if the data set knows them."""
        unseen = target < 0
        labels = labels_of(self._source.dataset) if unseen.any() else None
        known = labels is not None and torch.equal(labels[~unseen], target[~unseen])
        return labels if labels is not None and known else target


class Pruned:
    """Trains on the kept samples.

    Args:
        selection: those in use.
        warm_up: the phase before, which holds the dynamics; None in a fit that was resumed after it.
        snapshot: what the model restarts from at the start of the next epoch; None to continue.
    """

    def __init__(
        self, selection: Selection, warm_up: WarmingUp | None, snapshot: Snapshot | None
    ) -> None:
        self.selection, self.warm_up, self.snapshot = selection, warm_up, snapshot

    def restart(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Puts the model back, once; not at the swap: the Trainer steps epoch-wise schedules after that."""
        if self.snapshot is not None:
            self.snapshot.restore(trainer, module)
            self.snapshot = None

    @staticmethod
    def due(settings: DataSettings, epochs: int) -> Due:
        """Returns what is due `epochs` epochs after the warm-up."""
        estimate, draw = settings.update_every, settings.resample_every
        return Due(
            isinstance(estimate, int) and epochs % estimate == 0,
            isinstance(draw, int) and epochs % draw == 0,
        )

    def state_dict(self) -> dict[str, Any]:
        """Returns the selection without its indices, which the source has."""
        names = ("num_samples", "quota", "sizes", "keep", "seed")
        return {name: getattr(self.selection, name) for name in names}
