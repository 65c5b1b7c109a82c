"""The callback that follows the recall of every class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_only

from lightning_fairprune.callbacks._observe import (
    LogitsFn,
    StepObserver,
    capture_of,
    max_over_ranks,
    sum_over_ranks,
)
from lightning_fairprune.counts import ClassCounts, Tally

__all__ = ["RecallMonitor"]

# Every value that is logged through the module costs a reduction of its own; more classes than
# this go to the loggers directly and cannot be monitored.
_MOST_MONITORED = 100


class RecallMonitor(pl.Callback):
    """Logs worst, gap, standard deviation and mean of the class recalls after each evaluation.

    The names are ``val/recall/worst``, ``.../gap``, ``.../std``, ``.../mean`` and
    ``val/recall/class/NAME`` (``test/...`` in testing), so that
    ``ModelCheckpoint(monitor="val/recall/worst", mode="max")`` keeps the model whose weakest class is
    strongest. A second validation loader logs under ``val/1/recall/...``, and so on. Classes without
    a sample in the evaluation are left out of all of them. With more than 100 classes the values of
    single classes go to the loggers only and cannot be monitored.

    Args:
        num_classes: how many classes the logits must tell apart; None for as many as they do.
        class_names: how to call the classes, in order; their numbers by default.
        logits_fn: ``(module, batch) -> (logits, target)`` for steps that neither return ``"logits"``
            and ``"target"`` nor call ``cross_entropy``.

    Attributes:
        counts: the :class:`~lightning_fairprune.counts.ClassCounts` of the last evaluation, by the
            prefix of its names (``"val"``, ``"test"``, ``"val/1"``).

    Raises:
        ValueError: If `num_classes` and `class_names` disagree; at the first evaluated batch, if
            there are no logits to be found; at the end of the evaluation, if there are other classes
            than `num_classes` or `class_names` say.

    Example:
        >>> RecallMonitor(class_names=["cat", "dog"]).class_names
        ('cat', 'dog')
    """

    def __init__(
        self,
        num_classes: int | None = None,
        class_names: Sequence[str] | None = None,
        logits_fn: LogitsFn | None = None,
    ) -> None:
        if num_classes is not None and num_classes < 1:
            raise ValueError(f"`num_classes` must be at least 1, got {num_classes}.")
        if num_classes is not None and class_names is not None and num_classes != len(class_names):
            raise ValueError(
                f"`class_names` must name each of {num_classes} classes, got {len(class_names)}."
            )
        self.num_classes = num_classes
        self.class_names = None if class_names is None else tuple(class_names)
        self.logits_fn = logits_fn
        self.counts: dict[str, ClassCounts] = {}
        self._observer: StepObserver | None = None
        self._tallies: dict[int, Tally] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Begins a fit, a validation or a test."""
        self._observer = StepObserver(trainer, self.logits_fn)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begins a new count."""
        self._tallies = {}

    def on_validation_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Starts looking."""
        assert self._observer is not None
        self._observer.open(pl_module, batch)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Counts which predictions were right."""
        assert self._observer is not None
        step = "test_step" if trainer.testing else "validation_step"
        logits, target = self._observer.read(outputs, None, step)
        self._tallies.setdefault(dataloader_idx, Tally()).update(logits, target)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs the recalls."""
        if not trainer.sanity_checking:
            self._finish(trainer, pl_module, "test" if trainer.testing else "val")

    on_test_start = on_validation_start
    on_test_batch_start = on_validation_batch_start
    on_test_batch_end = on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Leaves nothing behind in torch."""
        capture_of(trainer).abandon()

    def _finish(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        # A rank may have had no batch of a loader; it must take part in the sums all the same.
        highest = torch.tensor(max(self._tallies, default=-1), device=module.device)
        for index in range(int(max_over_ranks(trainer)(highest)) + 1):
            counts = self._tallies.get(index, Tally()).compute(
                reduce_sum=sum_over_ranks(trainer),
                reduce_max=max_over_ranks(trainer),
                device=module.device,
            )
            prefix = f"{stage}/{index}" if index else stage
            self.counts[prefix] = counts
            self._log_counts(trainer, module, prefix, counts)

    def _log_counts(
        self, trainer: pl.Trainer, module: pl.LightningModule, prefix: str, counts: ClassCounts
    ) -> None:
        if self.num_classes not in (None, counts.num_classes):
            raise ValueError(
                f"`num_classes` is {self.num_classes}, but the logits are for {counts.num_classes}."
            )
        names = self.class_names or tuple(str(k) for k in range(counts.num_classes))
        if len(names) != counts.num_classes:
            raise ValueError(
                f"`class_names` must name each of {counts.num_classes} classes, got {len(names)}."
            )
        summary = {
            f"{prefix}/recall/worst": counts.worst,
            f"{prefix}/recall/gap": counts.gap,
            f"{prefix}/recall/std": counts.std,
            f"{prefix}/recall/mean": counts.mean,
        }
        seen = (counts.support > 0).tolist()
        classes = {
            f"{prefix}/recall/class/{name}": recall
            for name, recall, has_any in zip(names, counts.recall.tolist(), seen, strict=True)
            if has_any
        }
        if len(classes) <= _MOST_MONITORED:
            summary |= classes
        else:
            _send(trainer, classes)
        # All ranks hold the same values; saying so spares a warning of the Trainer's.
        module.log_dict(summary, sync_dist=trainer.world_size > 1, add_dataloader_idx=False)


@rank_zero_only
def _send(trainer: pl.Trainer, values: dict[str, float]) -> None:
    for logger in trainer.loggers:
        logger.log_metrics(values, step=trainer.global_step)
