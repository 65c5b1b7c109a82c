"""The callback that logs the recall of every class."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from weakref import ref

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_only

from lightning_fairprune._files import write_whole
from lightning_fairprune._lightning.replaced import replaced
from lightning_fairprune._observe.combined import one_loader_a_batch
from lightning_fairprune._observe.groups import GroupBy, LogitsFn
from lightning_fairprune._observe.validation import CountsValidation, Validation, abandon
from lightning_fairprune.callbacks._arguments import given, without_fit
from lightning_fairprune.callbacks._monitor import values
from lightning_fairprune.callbacks._monitor.loaded import LoadedWeights, filed, with_what_follows
from lightning_fairprune.callbacks._monitor.readers import check_readers
from lightning_fairprune.callbacks._monitor.reference import Reference, ReferenceCounts
from lightning_fairprune.callbacks._monitor.settings import MonitorSettings
from lightning_fairprune.callbacks._run_folder import (
    can_draw,
    run_folder,
    say_where,
    send_figure,
    takes_figures,
)
from lightning_fairprune.callbacks._training import (
    OfTraining,
    forget_training,
    name_training,
    training_of,
)
from lightning_fairprune.counts import ClassCounts
from lightning_fairprune.records.recall_history import (
    GROUPS,
    Evaluation,
    RecallHistory,
    is_of_groups,
)

__all__ = ["RecallMonitor"]


class RecallMonitor(OfTraining, CountsValidation):
    """Logs the recall of every class after each evaluation, and its change from a reference.

    The names are ``val/recall/worst``, ``.../gap``, ``.../std``, ``.../mean`` and
    ``val/recall/class/NAME`` (``test/...`` in testing), so that
    ``ModelCheckpoint(monitor="val/recall/worst", mode="max")`` keeps the model with the best recall of
    the worst class. Classes without a sample in the evaluation are left out. With more than 100
    classes the values of single classes go to the loggers only and cannot be monitored.

    A `reference` adds ``val/recall/alpha``, the intensification ratio of Good et al. (NeurIPS 2022;
    above 1: the classes have moved apart), ``val/recall/worst_change``, the largest loss of recall of
    a class, and ``val/recall/disparity``, the largest loss of recall beyond that of accuracy. See
    :mod:`lightning_fairprune.recalls` for the formulas.

    Predictions are the network's output, whatever its loss is given. With several labels a sample the recall
    of a label is that of the samples that have it, at a probability of .5. With a label at each position
    (tokens, pixels) positions are counted.

    With `group_by`, groups such as label x background are counted as well, and logged as
    ``val/groups/recall/worst`` and so on.

    A second validation loader is logged as ``val/1/recall/...``, and so on; loaders in a dictionary,
    or with `dataloader_names`, as ``val/NAME/recall/...``. Several loaders in a CombinedLoader must be
    ``"sequential"``: the other modes give a step batches of all loaders at once.

    Loggers that show figures (TensorBoard, Weights & Biases) get one of the recalls of all classes,
    if matplotlib is installed. The class counts of every evaluation are saved in the folder of the
    logger, as ``fairprune/recalls.safetensors`` and ``recalls.json``: a
    :class:`~lightning_fairprune.RecallHistory`, which can be the `reference` of another run, and which
    ``fairprune report`` reads. Of the last evaluation they say which samples were right, a bit for each.

    Args:
        num_classes: number of logits; None accepts any.
        reference: what distortion is relative to. A run's folder or one of its two files, a
            :class:`~lightning_fairprune.RecallHistory` (``monitor.history``), or a checkpoint of the
            reference model (``.ckpt``): its counts if they are of its weights, else its weights are
            validated before training. ``"fit_start"`` for the model at the start of the fit,
            ``"before_pruning"`` for the last evaluation before data or weights are pruned. None for
            no reference.
        class_names: names of the classes, in order; their numbers by default.
        group_by: groups to count besides the classes: the key or position of the group ids in a batch,
            or a function from the batch to them, int [B] in [0, G).
        group_names: names of the groups, in order; their numbers by default.
        dataloader_names: names of the loaders of an evaluation, if there are several.
        every_n_epochs: epochs between the validations that are counted.
        figures: whether to draw.
        dirpath: folder for the files; by default that of the logger, without a logger no files.
        logits_fn: ``(module, batch) -> (logits, target)``, for all callbacks of the Trainer, where steps do not
            show one prediction (see the guide); costs one forward pass a batch.

    Attributes:
        history: all evaluations so far.
        counts: the :class:`~lightning_fairprune.ClassCounts` of the last evaluation, by the prefix of
            its names (``"val"``, ``"test"``, ``"val/1"``).

    Raises:
        ValueError: If arguments disagree; at fit start, if batches of several loaders come at once, or the
            reference is of other classes or other data, or cannot be read or counted; at the first evaluated batch, if no logits are found; at
            the end of an evaluation, if its classes are not those of `num_classes`, `class_names` or
            the reference, or it had no batch.

    Example:
        >>> RecallMonitor(class_names=["cat", "dog"], reference="before_pruning").settings.reference
        'before_pruning'
    """

    def __init__(
        self,
        num_classes: int | None = None,
        reference: Reference = None,
        *,
        class_names: Sequence[str] | None = None,
        group_by: GroupBy | None = None,
        group_names: Sequence[str] | None = None,
        dataloader_names: Sequence[str] | None = None,
        every_n_epochs: int = 1,
        figures: bool = True,
        dirpath: str | os.PathLike[str] | None = None,
        logits_fn: LogitsFn | None = None,
    ) -> None:
        self.settings = MonitorSettings(**given(locals()))
        self._undo: Callable[[], None] = _nothing
        self._trained: Callable[[], pl.LightningModule | None] = _nothing  # in the last fit
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        """Pickles settings and results, without Trainer and model."""
        return without_fit(self, _undo=_nothing, _held=_nothing, _trained=_nothing)

    def _forget(self) -> None:
        settings = self.settings
        self.history = RecallHistory(
            class_names=settings.class_names, group_names=settings.group_names
        )
        self._reference = ReferenceCounts(settings.reference, settings.class_names)
        self._validation = Validation(None, settings.group_by, answers=True)
        self._loaded: LoadedWeights | None = None
        self._held: Callable[[], pl.LightningModule | None] = _nothing  # the module with them
        # Evaluations of other stages since the fit.
        self._outside: set[tuple[str, int, int]] = set()

    @property
    def counts(self) -> dict[str, ClassCounts]:
        """The class counts of the last evaluations."""
        return {name: self.history.last(name).counts for name in self.history.names}

    # ------------------------------------------------------------------------- start and end

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Resets the state for a new fit, and reads the reference."""
        # Loaded weights stay in the module, also for a later evaluation without a checkpoint.
        if stage == "fit" or self._held() is not pl_module:
            self._loaded = None
        if stage != "fit":
            self._note_weights(pl_module)
        elif trainer.current_epoch == 0 or self._trained() is not pl_module:
            forget_training(trainer)
            self._forget()
        else:  # the Trainer continues
            self._outside = set()
        if stage == "fit":
            self._trained = ref(pl_module)
        self._reference.setup(trainer, stage)
        if self.settings.num_classes is not None:
            for name, counts in self._reference.counts.items():
                if counts.num_classes != self.settings.num_classes and not is_of_groups(name):
                    raise ValueError(
                        f"`reference` must have the {self.settings.num_classes} classes of `num_classes`, it "
                        f"has {counts.num_classes} for {name!r}."
                    )

    def _note_weights(self, module: pl.LightningModule) -> None:
        """Notes of which step the weights are that `validate` or `test` loads."""
        users = module.on_load_checkpoint  # callbacks get no checkpoint that has weights alone

        def on_load_checkpoint(checkpoint: dict[str, Any]) -> Any:
            self._loaded, self._held = LoadedWeights.of(checkpoint), ref(module)
            return users(checkpoint)

        self._undo = replaced(module, "on_load_checkpoint", on_load_checkpoint)

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Loads the weights of a reference that must be validated."""
        self._reference.before_sanity_check(pl_module)

    def on_sanity_check_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restores the weights of the fit."""
        self._reference.after_sanity_check()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Raises for what would fail after the first epoch."""
        name_training(trainer)
        one_loader_a_batch(trainer)
        values.check_any_batch(trainer.num_val_batches, trainer.limit_val_batches, "validation")
        check_readers(trainer, self.settings.every_n_epochs)
        self._reference.at_train_start(trainer)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draws the last evaluations into files."""
        self._draw_files(trainer)
        say_where(trainer, "RecallMonitor", "history", "counts")

    def on_exception(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        """Stops observing and restores model and Trainer."""
        abandon(trainer)
        self._reference.teardown()
        self._undo()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Restores model and Trainer; raises if a loader was empty."""
        self._reference.teardown()
        self._undo()
        if stage == "test":
            values.check_any_batch(trainer.num_test_batches, trainer.limit_test_batches, stage)
        if stage == "validate":
            values.check_any_batch(trainer.num_val_batches, trainer.limit_val_batches, "validation")

    # -------------------------------------------------------------------------- one evaluation

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts a new count."""
        due = (trainer.current_epoch + 1) % self.settings.every_n_epochs == 0
        # Any count before pruning may be the last one.
        wanted = due or (self._reference.comes_before_pruning and not values.pruned(trainer))
        wanted = wanted or trainer.sanity_checking or trainer.state.fn != "fit"
        self._validation.begin(trainer, wanted=wanted)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs the recalls."""
        if self._validation.wanted:
            self._finish(trainer, pl_module, "test" if trainer.testing else "val")

    on_test_start = on_validation_start
    on_test_batch_start = CountsValidation.on_validation_batch_start
    on_test_batch_end = CountsValidation.on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end

    def _finish(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        found: dict[str, ClassCounts] = {}
        prefixes = self._prefixes(trainer, stage)
        all_counts = self._validation.counts(trainer, module)
        for prefix, (counts, *of_groups) in zip(prefixes, all_counts, strict=True):
            self.settings.check_classes(counts.num_classes)
            found[prefix] = counts
            for grouped in of_groups:
                name = prefix + GROUPS
                found[name] = self._with_all_groups(name, grouped)
        if trainer.sanity_checking:
            if self._reference.comes_from_sanity_check:
                self._reference.counts = found
            return
        if trainer.state.fn == "fit" and not self._validation.is_whole(trainer):
            values.log_part(trainer, module, found, self.history)
            return
        # What the fit left is not of the weights that another stage has loaded.
        now = self._loaded or LoadedWeights(
            trainer.current_epoch + (trainer.state.fn == "fit"),
            trainer.global_step,
            values.pruned(trainer),
        )
        if self._reference.comes_before_pruning and not now.pruned and self._loaded is None:
            self._reference.counts |= found
        compared = {name: self._reference.of(name, counts) for name, counts in found.items()}
        new = tuple(
            Evaluation(prefix, now.epoch, now.step, now.pruned, counts)
            for prefix, counts in found.items()
        )
        self.history = replace(
            self.history,
            evaluations=filed(self.history.evaluations, new, in_order=self._loaded is not None),
            reference=dict(self._reference.counts),
            seed=values.seed(),
        )
        for prefix, counts in found.items():
            names = self.history.names_of(prefix)
            values.log(trainer, module, values.values(prefix, counts, compared[prefix], names))
            if trainer.is_global_zero and self.settings.figures and takes_figures(trainer):
                send_figure(trainer, f"{prefix}/recall/classes", self._figure(prefix, counts))
        self._save(trainer, new)
        if trainer.state.fn != "fit":
            self._draw_files(trainer, *found)

    def _with_all_groups(self, name: str, counts: ClassCounts) -> ClassCounts:
        """Pads this evaluation, earlier ones and the reference to the same number of groups."""
        called = self.settings.group_names
        if called is not None and counts.num_classes > len(called):
            raise ValueError(
                f"`group_names` must name each of {counts.num_classes} groups, got {len(called)}."
            )
        known = [counts, *(e.counts for e in self.history.of(name)[:1])]
        known += [self._reference.counts[name]] if name in self._reference.counts else []
        most = max(len(called or ()), *(c.num_classes for c in known))
        self.history = self.history.padded(name, most)
        self._reference.make_room(name, most)
        return counts.padded(most)

    def _prefixes(self, trainer: pl.Trainer, stage: str) -> list[str]:
        loaders = trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders
        count = len(trainer.num_test_batches if trainer.testing else trainer.num_val_batches)
        names = self.settings.dataloader_names
        if names is None and isinstance(loaders, Mapping) and len(loaders) == count:
            names = tuple(map(str, loaders))
        # Names of several validation loaders do not apply to a single test loader.
        if names is None or not isinstance(loaders, Mapping | Sequence):
            return [stage, *(f"{stage}/{i}" for i in range(1, count))]
        if len(names) != count:
            raise ValueError(
                f"`dataloader_names` must name each of the {count} loaders, got {len(names)}."
            )
        return [f"{stage}/{name}" for name in names]

    # ----------------------------------------------------------------------- files and figures

    @rank_zero_only
    def _save(self, trainer: pl.Trainer, new: tuple[Evaluation, ...]) -> None:
        folder, history = self._folder(trainer), self.history
        if folder is None:
            return
        history = replace(history, training=training_of(trainer) or history.training)
        if trainer.state.fn != "fit":
            self._outside |= {one[:3] for one in new}
            own = tuple(one for one in history.evaluations if one[:3] not in self._outside)
            history = with_what_follows(history, folder, own, new)
        history.save(folder)

    @rank_zero_only
    def _draw_files(self, trainer: pl.Trainer, *names: str) -> None:
        """Draws the last evaluations of these names, or of all, into files."""
        folder = self._folder(trainer)
        if folder is None or not self.settings.figures or not can_draw():
            return
        for name in names or self.history.names:
            path = folder / f"recalls-{name.replace('/', '-')}.png"
            write_whole(path, partial(self._figure(name).savefig, format="png", dpi=150))

    def _folder(self, trainer: pl.Trainer) -> Path | None:
        return run_folder(trainer) if self.settings.dirpath is None else Path(self.settings.dirpath)

    def _figure(self, name: str, counts: ClassCounts | None = None) -> Any:
        from lightning_fairprune.figures import recall_by_class

        reference = self.history.reference.get(name)
        return recall_by_class(
            None if reference is None else reference.recall,
            (self.history.last(name).counts if counts is None else counts).recall,
            self.history.names_of(name),
            title=name,
            labels=("reference", "now"),
        )

    # -------------------------------------------------------------------------------- resuming

    def state_dict(self) -> dict[str, Any]:
        """Returns all counts, as CPU tensors and primitives."""
        return self.history.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues with the counts of a checkpoint; in other stages after a fit it keeps those of the fit."""
        if self._loaded is not None and self.history.evaluations:
            return
        history = RecallHistory.from_state_dict(state_dict)
        settings = self.settings
        self.history = replace(
            history, class_names=settings.class_names, group_names=settings.group_names
        )
        self._reference.restore(history.reference)
        self._validation.resumed(0)


def _nothing() -> None:
    """Undoes nothing."""
