"""The callback that fits offsets of the logits at the end of each validation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from lightning_fairprune._observe.groups import GroupBy, LogitsFn
from lightning_fairprune._observe.ranks import max_over_ranks, sum_over_ranks
from lightning_fairprune._observe.validation import CountsValidation, Kept, Validation, abandon
from lightning_fairprune.callbacks._arguments import at_least, given, number, without_fit
from lightning_fairprune.callbacks._run_folder import run_folder, say_where
from lightning_fairprune.callbacks._training import (
    OfTraining,
    forget_training,
    name_training,
    training_of,
)
from lightning_fairprune.counts import ClassCounts, count
from lightning_fairprune.offsets.ranks import fitted_on_ranks
from lightning_fairprune.records.offsets_record import OffsetsRecord

__all__ = ["RecallOffsets"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OffsetsSettings:
    """The arguments of `RecallOffsets`."""

    max_average_loss: float
    group_by: GroupBy | None
    recall_dataloader: int
    logits_fn: LogitsFn | None

    def __post_init__(self) -> None:
        number("max_average_loss", self.max_average_loss)
        if not 0 <= self.max_average_loss <= 1:
            raise ValueError(f"`max_average_loss` must be in [0, 1], got {self.max_average_loss}.")
        at_least("recall_dataloader", self.recall_dataloader, 0)


class RecallOffsets(OfTraining, CountsValidation):
    """Fits one number for each class that, added to the logits, raises the recall of the worst class.

    At the end of each validation in a fit, :func:`lightning_fairprune.offsets.fit` finds offsets on its logits. Model and
    training stay as they are. Every checkpoint holds the offsets of its own weights; two lines apply them::

        callback = trainer.checkpoint_callback  # or any checkpoint
        offsets = torch.load(callback.best_model_path)["callbacks"]["RecallOffsets"]["offsets"]
        lfp.offsets.export(model, offsets)  # into the bias of the last layer, or lfp.offsets.apply

    ``val/recall/worst_at_best_offsets`` and ``val/recall/mean_at_best_offsets`` are logged: what the worst class and the
    average could be without more training, each sample under offsets that were fitted on other samples. What the worst
    class lacks beyond that is a matter of representation, not of the threshold. The last of them go into the folder of
    the logger, as ``fairprune/offsets.json``, an :class:`~lightning_fairprune.OffsetsRecord`, which ``fairprune report`` reads.

    The offsets come from the validation data, which thereby becomes part of training: report final numbers on other
    data. The logits of one validation are kept on the device, in at most 2^28 numbers a rank.

    Args:
        max_average_loss: how much of the average recall the worst class may cost, in [0, 1].
        group_by: groups of which none should be bad: the key or position of the group ids in a batch, or a function
            from the batch to them, int [B] in [0, G); the classes by default. Offsets are of classes all the same.
        recall_dataloader: index of the validation loader that the offsets are fitted on.
        logits_fn: ``(module, batch) -> (logits, target)``, for all callbacks of the Trainer, where steps do not
            show one prediction (see the guide); costs one forward pass a batch.

    Attributes:
        record: of the last validation, an :class:`~lightning_fairprune.OffsetsRecord`; None before it.

    Raises:
        ValueError: If an argument is out of range; at fit start, if there is no validation; in a validation, if its
            samples have several labels each, or more logits than can be kept; after it, if it had no sample.

    Example:
        >>> RecallOffsets(max_average_loss=0.02).settings.max_average_loss
        0.02
    """

    def __init__(
        self,
        max_average_loss: float = 0.01,
        *,
        group_by: GroupBy | None = None,
        recall_dataloader: int = 0,
        logits_fn: LogitsFn | None = None,
    ) -> None:
        self.settings = OffsetsSettings(**given(locals()))
        self._resumes = True  # other stages restore the state of the fit, too
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        """Pickles settings and results, without Trainer and model."""
        return without_fit(self)

    def _forget(self) -> None:
        settings = self.settings
        self._validation = Validation(settings.recall_dataloader, settings.group_by, logits=True)
        self.record: OffsetsRecord | None = None
        self._resumed = False

    @property
    def offsets(self) -> Tensor | None:
        """The offsets of the last validation, float32 [K] on the CPU; None before it."""
        return None if self.record is None else self.record.offsets

    # ---------------------------------------------------------------------------- start and end

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Resets the state for a new fit."""
        self._resumes = stage == "fit"
        if stage == "fit":
            forget_training(trainer)
            self._forget()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Raises if there is no validation."""
        if not trainer.enable_validation:
            raise ValueError(
                "RecallOffsets needs the logits of a validation, but there is none: give a val_dataloader and a "
                "validation_step (and limit_val_batches > 0)."
            )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Names the training."""
        name_training(trainer)
        if self._resumed:
            self._validation.resumed(trainer.current_epoch)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Says where the results are, if the process ends with the fit."""
        say_where(trainer, "RecallOffsets", "record")

    def on_exception(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        """Stops observing."""
        abandon(trainer)

    # ------------------------------------------------------------------------------- validation

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts to keep logits."""
        self._validation.begin(trainer, wanted=trainer.state.fn == "fit")

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Fits the offsets, except after the sanity check, and logs what they are worth."""
        if self._validation.finish(trainer, pl_module) is None:
            return
        kept = self._validation.kept(trainer)
        self.record = _fitted(trainer, pl_module, kept, self.settings)
        found = {"worst": self.record.worst[1], "mean": self.record.fitted.mean}
        prefix = f"{self.record.name}/recall"
        pl_module.log_dict(
            {f"{prefix}/{name}_at_best_offsets": value for name, value in found.items()},
            sync_dist=trainer.world_size > 1,
            add_dataloader_idx=False,
        )
        self._save(trainer)

    @rank_zero_only
    def _save(self, trainer: pl.Trainer) -> None:
        folder = run_folder(trainer)
        if folder is not None and self.record is not None:
            replace(self.record, training=training_of(trainer)).save(folder)

    # --------------------------------------------------------------------------------- resuming

    def state_dict(self) -> dict[str, Any]:
        """Returns the offsets and their counts, as CPU tensors and primitives."""
        state: dict[str, Any] = {"validated": self._validation.step, "offsets": self.offsets}
        if self.record is not None:
            state["record"] = self.record.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues with the offsets of a checkpoint; other stages after a fit keep those of the fit."""
        if not self._resumes and self.record is not None:
            return
        found = state_dict.get("record")
        self.record = None if found is None else OffsetsRecord.from_state_dict(found)
        self._validation.step = state_dict["validated"]
        self._resumed = True


def _fitted(
    trainer: pl.Trainer, module: pl.LightningModule, kept: Kept | None, settings: OffsetsSettings
) -> OffsetsRecord:
    """Fits offsets on the logits of all ranks; all ranks must call this."""
    total, most = sum_over_ranks(trainer), max_over_ranks(trainer)
    grouped = settings.group_by is not None
    logits, target, group = kept or _nothing(module.device, grouped)
    highest = group.max() + 1 if group is not None and len(group) else target.new_tensor(0)
    sizes = torch.stack([target.new_tensor(logits.shape[1]), highest])
    num_classes, num_groups = most(sizes).tolist()
    if not num_classes:
        raise ValueError(
            f"the validation loader {settings.recall_dataloader} (`recall_dataloader`) must give at least one batch, "
            "it gave none."
        )
    if not logits.shape[1]:
        logits = logits.new_empty(0, num_classes)
    loss = settings.max_average_loss
    best, pred = fitted_on_ranks(logits, target, loss, group, total, num_groups)

    def counts(right: Tensor, label: Tensor, size: int) -> ClassCounts:
        found = total(torch.stack(count(right, label, size))).cpu()
        return ClassCounts(found[0], found[1])

    plain, fitted = logits.argmax(1) == target, pred == target
    plain_groups = None if group is None else counts(plain, group, num_groups)
    fitted_groups = None if group is None else counts(fitted, group, num_groups)
    several = len(trainer.num_val_batches) > 1 and settings.recall_dataloader
    return OffsetsRecord(
        best.cpu(),
        f"val/{settings.recall_dataloader}" if several else "val",
        trainer.current_epoch + 1,
        trainer.global_step,
        float(loss),
        counts(plain, target, num_classes),
        counts(fitted, target, num_classes),
        plain_groups,
        fitted_groups,
    )


def _nothing(device: torch.device, grouped: bool) -> Kept:
    labels = torch.empty(0, dtype=torch.int64, device=device)
    return Kept(torch.empty(0, 0, device=device), labels, labels if grouped else None)
