"""The counts that a monitor compares with: from a file, a checkpoint, or an epoch of the fit."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_fairprune._files import read_checkpoint
from lightning_fairprune._lightning.kinds import shards_weights
from lightning_fairprune._loading.labels import is_label, labels_of
from lightning_fairprune._model.weights import own_weights, put_in
from lightning_fairprune.counts import ClassCounts
from lightning_fairprune.records.recall_history import RecallHistory, is_of_groups

Reference = str | os.PathLike[str] | RecallHistory | None
FIT_START, BEFORE_PRUNING = "fit_start", "before_pruning"
CHECKPOINTS = (".ckpt", ".pt", ".pth")


class ReferenceCounts:
    """Counts to compare with, by prefix: read from a file, or counted in the fit."""

    def __init__(self, source: Reference, class_names: tuple[str, ...] | None) -> None:
        self.source, self.class_names = source, class_names
        self.counts: dict[str, ClassCounts] = {}
        self._weights: Mapping[str, Tensor] | None = None
        self._own: tuple[pl.LightningModule, dict[str, Any]] | None = None
        self._undo: tuple[pl.Trainer, float] | None = None

    def __bool__(self) -> bool:
        return self.source is not None

    def __getstate__(self) -> dict[str, Any]:
        """Pickles the counts, without Trainer and model."""
        return self.__dict__ | {"_undo": None, "_own": None, "_weights": None}

    @property
    def comes_before_pruning(self) -> bool:
        """Whether each evaluation before pruning updates the counts."""
        return self.source == BEFORE_PRUNING

    @property
    def comes_from_sanity_check(self) -> bool:
        """Whether the validation before the first epoch is the reference."""
        return bool(self._undo)

    def setup(self, trainer: pl.Trainer, stage: str) -> None:
        """Reads the file, or plans the evaluation that is the reference."""
        if self.source in (None, FIT_START, BEFORE_PRUNING):
            if stage == "fit" and self:
                self._check_validation(trainer)
            if stage == "fit" and self.source == FIT_START:
                self._ask_for_sanity_check(trainer)
            if stage == "fit" and self.comes_before_pruning:
                _check_prunes(trainer)
            return
        if self.counts:
            return
        if isinstance(self.source, RecallHistory):
            self._take(self.source)
        elif Path(self.source).suffix in CHECKPOINTS:
            self._read_checkpoint(trainer, Path(self.source), stage)
        else:
            self._take(RecallHistory.load(self.source))

    def _take(self, history: RecallHistory) -> None:
        ours, theirs = self.class_names, history.class_names
        if ours is not None and theirs is not None and ours != theirs:
            if len(ours) != len(theirs):
                raise ValueError(
                    f"`reference` must have the {len(ours)} classes of `class_names`, it has "
                    f"{len(theirs)}."
                )
            k = next(k for k in range(len(ours)) if ours[k] != theirs[k])
            raise ValueError(
                "`reference` must have the classes of `class_names`: class "
                f"{k} is {theirs[k]!r} there and {ours[k]!r} here."
            )
        if not history.names:
            raise ValueError("`reference` must hold at least one evaluation, it has none.")
        self.counts = {name: history.last(name).counts for name in history.names}
        for name, counts in self.counts.items():
            other = ours is not None and counts.num_classes != len(ours)
            if ours is not None and other and not is_of_groups(name):
                raise ValueError(
                    f"`reference` must have the {len(ours)} classes of `class_names`, it has "
                    f"{counts.num_classes} for {name!r}."
                )

    def _read_checkpoint(self, trainer: pl.Trainer, path: Path, stage: str) -> None:
        if not path.is_file():
            raise FileNotFoundError(f"`reference`: there is no file {str(path)!r}.")
        try:
            checkpoint = read_checkpoint(path)
        except ValueError as error:
            raise ValueError(
                f"`reference`: {error}. Give a checkpoint of the Trainer, or the folder of a run."
            ) from error
        weights = checkpoint.get("state_dict") if isinstance(checkpoint, Mapping) else None
        if not isinstance(weights, Mapping):
            raise ValueError(
                f"`reference`: {str(path)!r} must be a checkpoint of the Trainer, but it holds no "
                "'state_dict': give one, or the folder of a run."
            )
        state = checkpoint.get("callbacks", {}).get("RecallMonitor")
        history = RecallHistory.from_state_dict(state) if state else RecallHistory()
        # Counts of an earlier step are not those of these weights.
        current = [e for e in history.evaluations if e.step == checkpoint.get("global_step")]
        if current:
            self._take(RecallHistory(tuple(current), history.class_names))
        elif stage == "fit":
            self._check_validation(trainer)
            self._weights = weights
            self._ask_for_sanity_check(trainer)
        else:
            method = getattr(stage, "value", stage)
            raise ValueError(
                f"`reference`: {str(path)!r} holds no class counts of its weights. Run "
                f"trainer.{method}(model, ..., ckpt_path={str(path)!r}) with a RecallMonitor and a "
                "logger once, and give the folder of that run."
            )

    def _check_validation(self, trainer: pl.Trainer) -> None:
        if not trainer.enable_validation or trainer.limit_val_batches == 0:
            raise ValueError(
                f"`reference={str(self.source)!r}` must be counted in validation, and this fit has "
                "none: give a validation loader, or the counts of a finished run."
            )

    def _ask_for_sanity_check(self, trainer: pl.Trainer) -> None:
        if self._weights is not None and shards_weights(trainer.strategy):
            raise ValueError(
                f"`reference={str(self.source)!r}` holds no class counts, and "
                f"{type(trainer.strategy).__name__} shards the weights, so they cannot be evaluated "
                "here: give the folder of a run with RecallMonitor."
            )
        # The Trainer's own validation before training, but with all batches.
        self._undo = (trainer, trainer.num_sanity_val_steps)
        trainer.num_sanity_val_steps = float("inf")

    def before_sanity_check(self, module: pl.LightningModule) -> None:
        """Loads the weights of the reference, if they are to be validated."""
        if self._weights is not None:
            self._own = module, own_weights(module)
            put_in(module, self._weights, "reference", self.source)

    def after_sanity_check(self) -> None:
        """Restores the weights of the fit."""
        if self._own is not None:
            module, weights = self._own
            module.load_state_dict(weights, strict=False)
            self._own = self._weights = None

    def at_train_start(self, trainer: pl.Trainer) -> None:
        """Raises if there are no counts to compare with, or they are of other data."""
        if self.comes_before_pruning or not self:
            return
        if not self.counts:
            raise ValueError(
                f"`reference={str(self.source)!r}` is counted before training starts, but this fit "
                "resumes inside an epoch from a checkpoint without these counts: give the folder of a "
                "run with RecallMonitor."
            )
        if trainer.limit_val_batches == 1.0:
            self._check_labels(trainer)

    def _check_labels(self, trainer: pl.Trainer) -> None:
        """Raises if the labels of the data set are not those of the reference, if it knows them."""
        loader: Any = trainer.val_dataloaders
        labels = labels_of(getattr(loader, "dataset", None))
        if labels is None or "val" not in self.counts or bool((labels < 0).any()):
            return
        reference = self.counts["val"]
        support = torch.bincount(labels, minlength=reference.num_classes)
        try:
            ClassCounts(torch.zeros_like(support), support).check_comparable(reference, "val")
        except ValueError:
            if is_label(labels, loader.dataset):  # else it was another number of each sample
                raise

    def of(self, name: str, counts: ClassCounts) -> ClassCounts | None:
        """Returns the counts to compare an evaluation with, if there are any."""
        reference = self.counts.get(name)
        if reference is not None:
            counts.check_comparable(reference, name)
        return reference

    def make_room(self, name: str, num_groups: int) -> None:
        """Adds groups that the reference lacks."""
        if name in self.counts:
            self.counts[name] = self.counts[name].padded(num_groups)

    def restore(self, counts: Mapping[str, ClassCounts]) -> None:
        """Takes the counts of the checkpoint that the fit resumes, unless a file gave them."""
        if counts and not self.counts:
            self.counts, self._weights = dict(counts), None
            self.teardown()

    def teardown(self) -> None:
        """Restores the weights of the model and the setting of the Trainer."""
        self.after_sanity_check()
        if self._undo:
            trainer, trainer.num_sanity_val_steps = self._undo[0], self._undo[1]
            self._undo = None


def _check_prunes(trainer: pl.Trainer) -> None:
    if not any(hasattr(callback, "pruned") for callback in trainer.callbacks):  # type: ignore[attr-defined]
        raise ValueError(
            f"`reference={BEFORE_PRUNING!r}` needs a callback that prunes, such as DataPruning, among "
            f"the callbacks of the Trainer; use {FIT_START!r} or the folder of another run."
        )
