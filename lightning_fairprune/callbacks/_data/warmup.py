"""Recording what the steps of the warm-up saw of each sample, and making labels and scores of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_fairprune._loading.labels import labels_of
from lightning_fairprune._loading.source import TrainSource
from lightning_fairprune._observe.groups import GroupBy, LogitsFn, groups_of
from lightning_fairprune._observe.needs import required_signals
from lightning_fairprune._observe.observer import TrainingObserver
from lightning_fairprune._observe.ranks import sum_over_ranks
from lightning_fairprune._observe.recorder import EpochRecorder
from lightning_fairprune.callbacks._data import checks
from lightning_fairprune.callbacks._data.decision import Decision
from lightning_fairprune.callbacks._data.score_pass import FitPass
from lightning_fairprune.records.dynamics import Dynamics


class WarmUp:
    """One recorder and one observer, from the first step of a fit to its last warm-up epoch.

    Args:
        trainer: whose steps.
        source: knows the indices of the current batch.
        epochs: length of the warm-up.
        score: whose signals are recorded; None records labels only.
        in_pass: computes the score when the warm-up is over; then labels only are recorded.
        group_by: where group ids are found in a batch.
        logits_fn: see :class:`~lightning_fairprune.DataPruning`.
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        source: TrainSource,
        epochs: int,
        *,
        score: Callable[..., Any] | None,
        in_pass: FitPass | None = None,
        group_by: GroupBy | None,
        logits_fn: LogitsFn | None,
    ) -> None:
        self._trainer, self._source, self._group_by = trainer, source, group_by
        self._score, self._pass = score, in_pass
        self._passed: Dynamics | None = None
        read = None if in_pass is not None else score
        names = () if read is None else required_signals(read, num_epochs=epochs)
        self.recorder = EpochRecorder(
            source.num_samples,
            names,
            grouped=group_by is not None,
            device=trainer.strategy.root_device,
        )
        self._observer = TrainingObserver(trainer, logits_fn)

    def open(self, module: pl.LightningModule, batch: Any) -> None:
        """Before a step."""
        if self.recorder.needed:
            self._observer.open(module, batch)

    def look(self, module: pl.LightningModule, loss: Tensor) -> None:
        """Between its forward and its backward pass."""
        if not self.recorder.needed:
            return
        if self._source.indices is not None:
            self._observer.look(loss, len(self._source.indices))
        if module.automatic_optimization:
            self._observer.close()

    def note(self, module: pl.LightningModule, outputs: Any, batch: Any) -> None:
        """After it."""
        if not self.recorder.needed:
            return
        self._observer.close()
        if module.automatic_optimization and not outputs and self._observer.saw_nothing:
            return  # the step returned None: the user skips this batch
        indices = self._source.indices
        if indices is None:
            raise RuntimeError(
                "batches arrive without their indices: something replaced "
                "`on_before_batch_transfer` after DataPruning was set up."
            )
        seen = self._observer.read_step(outputs, len(indices))
        if seen is not None:
            self.recorder.update(indices, *seen, groups_of(batch, self._group_by))

    def finish_epoch(self, epoch: int) -> None:
        """After the last step of an epoch; all ranks must call this."""
        self._observer.close()  # a module may end an epoch when its step has been announced
        if self.recorder.needed:
            self.recorder.finish_epoch(epoch, sum_over_ranks(self._trainer))

    def close(self, decision: Decision) -> None:
        """Gives labels (or groups) and scores to the decision, and lets go of the device memory."""
        recorder, grouped = self.recorder, self.recorder.group
        target = recorder.target if grouped is None else grouped
        budget, scores = decision.budget(len(target)), None
        if self._pass is not None:
            passed = self._pass.run(recorder.target)
            scores, self._passed = passed.score, passed.dynamics
            seen = recorder.target if passed.target is None else passed.target
            checks.scored(self._score, scores, seen, budget)
            if grouped is None:
                target = self._labels(target) if passed.target is None else passed.target
            target = target.masked_fill(scores.isnan(), -1)
        elif self._score is not None:
            scores = self._score(recorder.dynamics()).detach().cpu()
            checks.scored(self._score, scores, target, budget)
            target = target.masked_fill(scores.isnan(), -1)
        elif grouped is None:
            target = self._labels(target)
        checks.unobserved(target, budget)
        decision.learn(target, scores, recorder.num_classes if grouped is None else 0)
        recorder.release()

    def _labels(self, target: Tensor) -> Tensor:
        """Adds the labels of those that drop_last or a limit kept away, if the data set knows them."""
        unseen = target < 0
        labels = labels_of(self._source.dataset) if unseen.any() else None
        known = labels is not None and torch.equal(labels[~unseen], target[~unseen])
        return labels if labels is not None and known else target

    @property
    def dynamics(self) -> Dynamics:
        """What was recorded, or what the pass saw."""
        return self.recorder.dynamics() if self._passed is None else self._passed

    def state_dict(self) -> dict[str, Any]:
        """Returns the record; all ranks must call this."""
        return self.recorder.state_dict(sum_over_ranks(self._trainer))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state_dict` was taken."""
        self.recorder.load_state_dict(state)
