"""The two phases of a fit with DataPruning: on all the data, then on the kept samples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_fairprune import label_errors
from lightning_fairprune._loading.labels import guesses
from lightning_fairprune._loading.source import TrainSource
from lightning_fairprune._model.losses import IGNORED
from lightning_fairprune._observe.warmup import WarmUp
from lightning_fairprune.callbacks._data import checks
from lightning_fairprune.callbacks._data.discovery import SIGNALS, Discovery, Found
from lightning_fairprune.callbacks._data.score_pass import FitPass
from lightning_fairprune.callbacks._data.settings import DataSettings
from lightning_fairprune.records.dynamics import Dynamics
from lightning_fairprune.records.label_errors import LabelErrors
from lightning_fairprune.selection import Selection
from lightning_fairprune.selection.decision import Decision

if TYPE_CHECKING:
    from lightning_fairprune.callbacks._data.restart import Start


class Due(NamedTuple):
    """What is due at the end of an epoch."""

    estimate: bool
    draw: bool


class WarmingUp:
    """The phase on all the data: records labels, and what the score needs of each sample.

    ``after="restart"`` restores `snapshot`; it is None with ``after="continue"``.
    """

    def __init__(
        self,
        settings: DataSettings,
        trainer: pl.Trainer,
        source: TrainSource,
        epochs: int,
        snapshot: Start | None,
    ) -> None:
        self.snapshot, self._score, self._source = snapshot, settings.score, source
        by_pass = settings.score_pass is not None
        self._pass = FitPass(settings, trainer, source) if by_pass else None
        self._passed: Dynamics | None = None
        finds = settings.discovered is not None
        besides = label_errors.SIGNALS if settings.watches_labels else SIGNALS if finds else ()
        self._discovery = Discovery(settings, trainer, source) if finds else None
        self.observed = WarmUp(
            trainer,
            source,
            epochs,
            score=None if by_pass else settings.score,
            group_by=settings.labelled,
            by_class=settings.quota is not None,
            besides=besides,
        )

    def __getstate__(self) -> dict[str, Any]:
        """Pickles what was recorded, without Trainer, model and data."""
        return {"snapshot": None, "_passed": self.dynamics}

    @property
    def dynamics(self) -> Dynamics:
        """What the warm-up recorded, or the pass."""
        return self.observed.dynamics if self._passed is None else self._passed

    def label_errors(self) -> LabelErrors | None:
        """Returns the estimate of wrong labels from the recorded epochs; None if too few, or not what it needs, were recorded."""
        recorder = self.observed.recorder
        needed = label_errors.SIGNALS
        if not set(needed) <= set(recorder.names):
            return None
        seen = recorder.dynamics()
        if seen.num_epochs < label_errors.LEAST_EPOCHS:
            return None
        return label_errors.wrong_labels(seen, recorder.num_classes)

    def close(self, decision: Decision) -> Found | None:
        """Passes labels (or groups) and scores to the decision, and frees the device memory; returns groups it found."""
        recorder, grouped = self.observed.recorder, self.observed.recorder.group
        target = recorder.target if grouped is None else grouped
        ignored = recorder.target == IGNORED
        population = len(target) - int(ignored.sum())
        budget, scores = decision.budget(population), None
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
        target = target.masked_fill(ignored, -1)
        checks.unobserved(target[~ignored], budget, decision.repeat)
        found = None
        if self._discovery is not None:
            found = self._discovery.run(recorder.dynamics(), target)
        if found is not None:
            target = found.group
        num_classes = recorder.num_classes if grouped is None and found is None else 0
        decision.learn(target, scores, num_classes, population=population)
        recorder.release()
        self._source.carry_index = False
        return found

    def _labels(self, target: Tensor) -> Tensor:
        """Adds labels that the data set knows of samples that drop_last or a limit left out."""
        seen = target >= 0
        if seen.all():
            return target
        for labels in guesses(self._source.dataset):
            if torch.equal(labels[seen], target[seen]):
                classes = self.observed.recorder.num_classes
                return labels.masked_fill((labels < 0) | (labels >= classes), -1)
        return target


class Pruned:
    """The phase on the kept samples.

    It keeps the warm-up for its dynamics (None in a fit that was resumed after it), and the snapshot
    until the model restarts from it.
    """

    def __init__(
        self, selection: Selection, warm_up: WarmingUp | None, snapshot: Start | None
    ) -> None:
        self.selection, self.warm_up, self.snapshot = selection, warm_up, snapshot

    def __getstate__(self) -> dict[str, Any]:
        """Pickles the results, without the weights of the snapshot."""
        return {"selection": self.selection, "warm_up": self.warm_up, "snapshot": None}

    @staticmethod
    def due(settings: DataSettings, epochs: int) -> Due:
        """Returns what is due `epochs` epochs after the end of the warm-up."""
        estimate, draw = settings.update_every, settings.resample_every
        return Due(
            isinstance(estimate, int) and epochs % estimate == 0,
            isinstance(draw, int) and epochs % draw == 0,
        )

    def state_dict(self) -> dict[str, Any]:
        """Returns the selection without its indices, which the source saves."""
        names = ("num_samples", "quota", "sizes", "keep", "seed", "repeat")
        return {name: getattr(self.selection, name) for name in names}
