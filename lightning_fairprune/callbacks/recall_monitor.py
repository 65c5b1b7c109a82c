"""The callback that follows the recall of every class."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_only

from lightning_fairprune import recalls
from lightning_fairprune._files import write_whole
from lightning_fairprune.callbacks._observe import (
    LogitsFn,
    StepObserver,
    capture_of,
    max_over_ranks,
    sum_over_ranks,
)
from lightning_fairprune.callbacks._reference import (
    Reference,
    ReferenceCounts,
)
from lightning_fairprune.callbacks._run_folder import (
    can_draw,
    run_folder,
    send_figure,
    takes_figures,
)
from lightning_fairprune.counts import ClassCounts, Tally
from lightning_fairprune.history import Evaluation, RecallHistory

__all__ = ["RecallMonitor"]

# Every value that is logged through the module costs a reduction of its own; more classes than
# this go to the loggers directly and cannot be monitored.
_MOST_MONITORED = 100


class RecallMonitor(pl.Callback):
    """Logs which classes a model recalls, after each evaluation, and what they lost to a reference.

    The names are ``val/recall/worst``, ``.../gap``, ``.../std``, ``.../mean`` and
    ``val/recall/class/NAME`` (``test/...`` in testing), so that
    ``ModelCheckpoint(monitor="val/recall/worst", mode="max")`` keeps the model whose weakest class is
    strongest. Classes without a sample in the evaluation are left out of all of them. With more than
    100 classes the values of single classes go to the loggers only and cannot be monitored.

    With a `reference` come ``val/recall/alpha``, the intensification ratio of Good et al. (NeurIPS
    2022; above 1: the classes have moved apart), ``val/recall/worst_change``, the largest loss of
    recall of a class, and ``val/recall/disparity``, by how much a class lost more than the accuracy
    did. See :mod:`lightning_fairprune.recalls` for the formulas.

    A second validation loader logs under ``val/1/recall/...``, and so on; loaders that come as a
    dictionary, or have `dataloader_names`, under ``val/NAME/recall/...``.

    Loggers that show figures (TensorBoard, Weights & Biases) get one of the recalls of all classes,
    if matplotlib is installed. The folder of the logger gets ``fairprune/recalls.safetensors`` and
    ``recalls.json`` with the class counts of every evaluation, a
    :class:`~lightning_fairprune.RecallHistory`: they can be the `reference` of another run, and
    ``fairprune report`` reads them.

    Args:
        num_classes: how many classes the logits must tell apart; None for as many as they do.
        reference: what distortion is relative to. A run's folder or one of its two files, a
            :class:`~lightning_fairprune.RecallHistory` (``monitor.history``), or a checkpoint of the
            reference model (``.ckpt``): the counts in it if they are of its weights, else its weights
            are validated before training. ``"fit_start"`` for the model that the fit begins with,
            ``"before_pruning"`` for the last evaluation before data or weights are pruned. None for
            no reference.
        class_names: how to call the classes, in order; their numbers by default.
        dataloader_names: how to call the loaders of an evaluation, if there are several.
        every_n_epochs: validations to count, by the number of their epoch.
        figures: whether to draw.
        dirpath: where to write files; the folder of the logger by default, and without a logger
            nothing is written.
        logits_fn: ``(module, batch) -> (logits, target)`` for steps that neither return ``"logits"``
            and ``"target"`` nor call ``cross_entropy``.

    Attributes:
        history: all evaluations so far.
        counts: the :class:`~lightning_fairprune.ClassCounts` of the last evaluation, by the prefix of
            its names (``"val"``, ``"test"``, ``"val/1"``).

    Raises:
        ValueError: If arguments disagree; at fit start, if the reference has other classes, is of
            other data, or cannot be had; at the first evaluated batch, if there are no logits to be
            found; at the end of an evaluation, if there are other classes than `num_classes`,
            `class_names` or the reference say, or there was nothing to count.

    Example:
        >>> RecallMonitor(class_names=["cat", "dog"], reference="before_pruning").class_names
        ('cat', 'dog')
    """

    def __init__(
        self,
        num_classes: int | None = None,
        reference: Reference = None,
        class_names: Sequence[str] | None = None,
        dataloader_names: Sequence[str] | None = None,
        every_n_epochs: int = 1,
        figures: bool = True,
        dirpath: str | os.PathLike[str] | None = None,
        logits_fn: LogitsFn | None = None,
    ) -> None:
        if num_classes is not None and num_classes < 1:
            raise ValueError(f"`num_classes` must be at least 1, got {num_classes}.")
        if num_classes is not None and class_names is not None and num_classes != len(class_names):
            raise ValueError(
                f"`class_names` must name each of {num_classes} classes, got {len(class_names)}."
            )
        for name, names in (("class_names", class_names), ("dataloader_names", dataloader_names)):
            if names is not None and len(set(names)) < len(names):
                raise ValueError(f"`{name}` must differ from each other, got {list(names)}.")
        if every_n_epochs < 1:
            raise ValueError(f"`every_n_epochs` must be at least 1, got {every_n_epochs}.")
        self.num_classes = num_classes
        self.reference = reference
        self.class_names = None if class_names is None else tuple(class_names)
        self.dataloader_names = None if dataloader_names is None else tuple(dataloader_names)
        self.every_n_epochs = every_n_epochs
        self.figures = figures
        self.dirpath = dirpath
        self.logits_fn = logits_fn
        self._observer: StepObserver | None = None
        self._tallies: dict[int, Tally] = {}
        self._counting = True
        self._forget()

    def _forget(self) -> None:
        self.history = RecallHistory(class_names=self.class_names)
        self._reference = ReferenceCounts(self.reference, self.class_names)

    @property
    def counts(self) -> dict[str, ClassCounts]:
        """The class counts of the last evaluations."""
        return {name: self.history.last(name).counts for name in self.history.names}

    # ------------------------------------------------------------------------- begin and end

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Begins a fit, a validation or a test."""
        self._observer = StepObserver(trainer, self.logits_fn)
        if stage == "fit":
            self._forget()
        self._reference.setup(trainer, stage)
        if self.num_classes is not None:
            for name, counts in self._reference.counts.items():
                if counts.num_classes != self.num_classes:
                    raise ValueError(
                        f"`reference` must have the {self.num_classes} classes of `num_classes`, it "
                        f"has {counts.num_classes} for {name!r}."
                    )

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Makes room for the reference model, if there is one to be evaluated."""
        self._reference.before_sanity_check(pl_module)

    def on_sanity_check_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Goes back to the model of the fit."""
        self._reference.after_sanity_check(pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Checks what would otherwise fail after the first epoch."""
        _check_any_batch(trainer.num_val_batches, trainer.limit_val_batches, "validation")
        self._reference.at_train_start(trainer)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draws the last evaluations for those whose logger takes no figures."""
        self._draw_files(trainer)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Leaves nothing behind in torch or in the Trainer."""
        capture_of(trainer).abandon()
        self._reference.teardown()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Gives the Trainer its settings back; says so if there was nothing to count."""
        self._reference.teardown()
        if stage == "test":
            _check_any_batch(trainer.num_test_batches, trainer.limit_test_batches, stage)
        if stage == "validate":
            _check_any_batch(trainer.num_val_batches, trainer.limit_val_batches, "validation")

    # -------------------------------------------------------------------------- one evaluation

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begins a new count."""
        self._tallies = {}
        due = (trainer.current_epoch + 1) % self.every_n_epochs == 0
        # The last count before pruning must not be missed: nobody knows it for the last.
        wanted = due or (self._reference.comes_before_pruning and not _pruned(trainer))
        self._counting = wanted or trainer.sanity_checking or trainer.state.fn != "fit"

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
        if self._counting:
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
        if self._counting:
            step = "test_step" if trainer.testing else "validation_step"
            logits, target = self._observer.read(outputs, None, step)
            self._tallies.setdefault(dataloader_idx, Tally()).update(logits, target)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs the recalls."""
        if self._counting:
            self._finish(trainer, pl_module, "test" if trainer.testing else "val")

    on_test_start = on_validation_start
    on_test_batch_start = on_validation_batch_start
    on_test_batch_end = on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end

    def _finish(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        prefixes = self._prefixes(trainer, stage)
        found: dict[str, ClassCounts] = {}
        for index, prefix in enumerate(prefixes):
            # A rank may have had no batch of a loader; it takes part in the sums all the same.
            counts = self._tallies.get(index, Tally()).compute(
                reduce_sum=sum_over_ranks(trainer),
                reduce_max=max_over_ranks(trainer),
                device=module.device,
            )
            self._check_classes(counts)
            found[prefix] = counts
        self._tallies = {}
        if trainer.sanity_checking:
            if self._reference.comes_from_sanity_check:
                self._reference.counts = found
            return
        pruned = _pruned(trainer)
        if self._reference.comes_before_pruning and not pruned:
            self._reference.counts |= found
        compared = {name: self._reference.of(name, counts) for name, counts in found.items()}
        epoch = trainer.current_epoch + (trainer.state.fn == "fit")
        new = tuple(
            Evaluation(prefix, epoch, trainer.global_step, pruned, counts)
            for prefix, counts in found.items()
        )
        self.history = replace(
            self.history,
            evaluations=self.history.evaluations + new,
            reference=dict(self._reference.counts),
            seed=_seed(),
        )
        for prefix, counts in found.items():
            self._log_counts(trainer, module, prefix, counts, compared[prefix])
        self._save(trainer)
        if trainer.state.fn != "fit":
            self._draw_files(trainer)

    def _prefixes(self, trainer: pl.Trainer, stage: str) -> list[str]:
        loaders = trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders
        count = len(trainer.num_test_batches if trainer.testing else trainer.num_val_batches)
        names = self.dataloader_names
        if names is None and isinstance(loaders, Mapping):
            names = tuple(map(str, loaders))
        # A test with one loader need not be named as the several of the validation are.
        if names is None or not isinstance(loaders, Mapping | Sequence):
            return [stage, *(f"{stage}/{i}" for i in range(1, count))]
        if len(names) != count:
            raise ValueError(
                f"`dataloader_names` must name each of the {count} loaders, got {len(names)}."
            )
        return [f"{stage}/{name}" for name in names]

    def _check_classes(self, counts: ClassCounts) -> None:
        if self.num_classes not in (None, counts.num_classes):
            raise ValueError(
                f"`num_classes` is {self.num_classes}, but the logits are for {counts.num_classes}."
            )
        if self.class_names is not None and len(self.class_names) != counts.num_classes:
            raise ValueError(
                f"`class_names` must name each of {counts.num_classes} classes, got "
                f"{len(self.class_names)}."
            )

    def _log_counts(
        self,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        prefix: str,
        counts: ClassCounts,
        reference: ClassCounts | None,
    ) -> None:
        names = self.class_names or tuple(str(k) for k in range(counts.num_classes))
        summary = {name: getattr(counts, name) for name in ("worst", "gap", "std", "mean")}
        if reference is not None:
            summary |= _distortion(counts, reference)
        summary = {f"{prefix}/recall/{name}": value for name, value in summary.items()}
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
        if trainer.is_global_zero and self.figures and takes_figures(trainer):
            send_figure(trainer, f"{prefix}/recall/classes", self._figure(prefix))

    # ----------------------------------------------------------------------- files and figures

    @rank_zero_only
    def _save(self, trainer: pl.Trainer) -> None:
        folder = self._folder(trainer)
        if folder is not None:
            self.history.save(folder)

    @rank_zero_only
    def _draw_files(self, trainer: pl.Trainer) -> None:
        folder = self._folder(trainer)
        if folder is None or not self.figures or not can_draw():
            return
        for name in self.history.names:
            path = folder / f"recalls-{name.replace('/', '-')}.png"
            write_whole(path, partial(self._figure(name).savefig, format="png", dpi=150))

    def _folder(self, trainer: pl.Trainer) -> Path | None:
        return run_folder(trainer) if self.dirpath is None else Path(self.dirpath)

    def _figure(self, name: str) -> Any:
        from lightning_fairprune.figures import recall_by_class

        reference = self.history.reference.get(name)
        return recall_by_class(
            None if reference is None else reference.recall,
            self.history.last(name).counts.recall,
            self.class_names,
            title=name,
            labels=("reference", "now"),
        )

    # -------------------------------------------------------------------------------- resuming

    def state_dict(self) -> dict[str, Any]:
        """Returns all counts, as CPU tensors and primitives."""
        return self.history.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on with the counts of a checkpoint."""
        history = RecallHistory.from_state_dict(state_dict)
        self.history = replace(history, class_names=self.class_names)
        self._reference.restore(history.reference)


def _distortion(counts: ClassCounts, reference: ClassCounts) -> dict[str, float]:
    now, before = counts.recall, reference.recall
    accuracies = counts.accuracy, reference.accuracy
    return {
        "alpha": float(recalls.intensification(now, before, *accuracies)),
        "worst_change": float(recalls.worst(recalls.change(now, before))),
        "disparity": float(recalls.disparity(now, before, *accuracies)),
    }


def _pruned(trainer: pl.Trainer) -> bool:
    return any(getattr(callback, "pruned", False) for callback in trainer.callbacks)  # type: ignore[attr-defined]


def _seed() -> int | None:
    seed = os.environ.get("PL_GLOBAL_SEED")  # left there by seed_everything
    return int(seed) if seed is not None else None


def _check_any_batch(batches: list[int | float], limit: float, what: str) -> None:
    if limit != 0 and 0 in batches:
        raise ValueError(
            f"RecallMonitor: loader {batches.index(0)} of the {what} must give at least one batch, it "
            "is empty."
        )


@rank_zero_only
def _send(trainer: pl.Trainer, values: dict[str, float]) -> None:
    for logger in trainer.loggers:
        logger.log_metrics(values, step=trainer.global_step)
