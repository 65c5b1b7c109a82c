"""Records the labels and signals of every sample in the training steps of a warm-up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
from torch import Tensor

from lightning_fairprune._loading.labels import guesses
from lightning_fairprune._loading.source import TrainSource
from lightning_fairprune._model.losses import Seen
from lightning_fairprune._observe.groups import GroupBy, groups_of
from lightning_fairprune._observe.needs import required_signals
from lightning_fairprune._observe.observer import TrainingObserver
from lightning_fairprune._observe.ranks import sum_over_ranks
from lightning_fairprune._observe.recorder import EpochRecorder
from lightning_fairprune.records.dynamics import Dynamics


class WarmUp:
    """Observes training steps and fills a recorder, as long as it needs anything.

    Args:
        trainer: of the fit.
        source: has the indices of the current batch.
        epochs: length of the warm-up.
        score: its signals are recorded; None records labels only.
        group_by: see :class:`~lightning_fairprune.DataPruning`.
        by_class: whether samples are selected by class.
        besides: signals to record besides those of the score, see `EpochRecorder`.
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        source: TrainSource,
        epochs: int,
        *,
        score: Callable[..., Any] | None,
        group_by: GroupBy | None,
        by_class: bool = True,
        besides: Sequence[str] = (),
    ) -> None:
        self._by_class = by_class
        self._labels: Tensor | None = None  # of mixed samples
        self._trainer, self._source, self._group_by = trainer, source, group_by
        names = () if score is None else required_signals(score, num_epochs=epochs)
        self.recorder = EpochRecorder(
            source.num_samples,
            names,
            besides=besides,
            grouped=group_by is not None,
            device=trainer.strategy.root_device,
        )
        self._observer = TrainingObserver(trainer)

    def before_step(self, module: pl.LightningModule, batch: Any) -> None:
        """Starts observing."""
        if self.recorder.needed:
            self._observer.open(module, batch)

    def before_backward(self, module: pl.LightningModule, loss: Tensor) -> None:
        """Reads the graph of the loss, and stops observing unless other losses may follow."""
        if not self.recorder.needed:
            return
        if self._source.indices is not None:
            self._observer.look(loss, len(self._source.indices))
        if module.automatic_optimization:
            self._observer.close()

    def after_step(self, module: pl.LightningModule, outputs: Any, batch: Any) -> None:
        """Records the step."""
        # A loader may give no batch, and no step is run.
        if not self.recorder.needed or batch is None:
            return
        self._observer.close()
        if module.automatic_optimization and not outputs and self._observer.saw_nothing:
            return  # the step returned None to skip the batch
        indices = self._source.indices
        if indices is None:
            raise RuntimeError(
                "batches arrive without their indices: something replaced "
                "`on_before_batch_transfer` after DataPruning was set up."
            )
        seen = self._observer.read_step(outputs, len(indices))
        if seen is not None:
            self._check(seen)
            target = seen.target if seen.mixed is None else self._own_labels(indices, seen.mixed)
            self.recorder.update(indices, seen.logits, target, groups_of(batch, self._group_by))

    def _own_labels(self, indices: Tensor, mixed: Tensor) -> Tensor:
        """Returns the labels of samples that were mixed with others before the step, from the data set."""
        if self._labels is None:
            found = guesses(self._source.dataset)
            known = next((y for y in found if _are_of(y[indices.cpu()], mixed.cpu())), None)
            if known is None:
                raise ValueError(
                    "training_step: the batch holds class probabilities of mixed samples, which do not say which class "
                    "a sample has, and the data set has no `targets` that belong to them: give it some, or mix "
                    "in the step, so that the batch has the labels."
                )
            self._labels = known.to(mixed.device)
        return self._labels[indices]

    def _check(self, seen: Seen) -> None:
        if seen.per_label:
            raise ValueError(
                f"training_step: samples have any number of {seen.target.shape[1]} labels, and quotas need one class for "
                "each: DataPruning supports one class a sample, RecallMonitor counts several labels."
            )
        if seen.target.ndim > 1 and self._by_class and self._group_by is None:
            raise ValueError(
                f"training_step: each sample has labels of shape {list(seen.target.shape[1:])}, and quotas need one "
                "class for each: give the group of each sample (`group_by`), or `quota=None` to select by score alone."
            )

    def abandon(self) -> None:
        """Forgets the step that failed, and its graph."""
        self._observer.abandon()

    def finish_epoch(self, epoch: int) -> None:
        """Moves the epoch to the host; all ranks must call this."""
        self._observer.close()  # a module may end the epoch before its step
        if self.recorder.needed:
            self.recorder.finish_epoch(epoch, sum_over_ranks(self._trainer))

    @property
    def name(self) -> str:
        """What the steps predict, in words."""
        return self._observer.name()

    @property
    def dynamics(self) -> Dynamics:
        """The recorded epochs."""
        return self.recorder.dynamics()

    def state_dict(self) -> dict[str, Any]:
        """Returns the record; all ranks must call this."""
        return self.recorder.state_dict(sum_over_ranks(self._trainer))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues where `state_dict` was taken."""
        self.recorder.load_state_dict(state)


def _are_of(labels: Tensor, mixed: Tensor) -> bool:
    """Whether each sample's label [B] has a part in its class probabilities [B, C]."""
    inside = labels.clamp(0, mixed.shape[1] - 1)
    has_part = mixed.gather(1, inside.unsqueeze(1)).squeeze(1) > 0
    return bool(((labels == inside) & has_part).all())
