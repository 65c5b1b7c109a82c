"""The callback that weights the classes in the loss by their recall."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lightning_fairprune._observe.combined import one_loader_a_batch
from lightning_fairprune._observe.groups import LogitsFn
from lightning_fairprune._observe.validation import (
    CountsValidation,
    RecallWindow,
    Validation,
    abandon,
)
from lightning_fairprune.callbacks._arguments import at_least, given, shrinkage, without_fit
from lightning_fairprune.weighting import cdb_w

__all__ = ["ClassWeighting"]

Loss = nn.CrossEntropyLoss | nn.NLLLoss


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WeightingSettings:
    """The arguments of `ClassWeighting`."""

    weights: Callable[..., Any]
    loss: str | None
    recall_window: int
    update_every: int
    shrinkage: float | Literal["auto"]
    recall_dataloader: int
    logits_fn: LogitsFn | None

    def __post_init__(self) -> None:
        at_least("recall_window", self.recall_window, 1, "validation")
        at_least("update_every", self.update_every, 1, "validation")
        shrinkage(self.shrinkage)
        at_least("recall_dataloader", self.recall_dataloader, 0)


class ClassWeighting(CountsValidation):
    """Weights the classes in the training loss by their recalls in the last validation.

    The first epoch is trained without weights. The callback sets the weights of the module's
    ``nn.CrossEntropyLoss`` or ``nn.NLLLoss`` before each training step and restores the loss's own
    after it, so it changes neither the validation loss nor checkpoints. Class weights of the loss are
    replaced in training, not multiplied.

    A module that calls the function instead of a loss module reads the weights in its step, with
    ``loss=None`` here::

        F.cross_entropy(logits, target, weight=self.weighting.weight)  # the callback

    The recalls come from the validation data, which thereby becomes part of training: report final
    numbers on other data. With `DataPruning(after="restart")` the first epoch of the new model uses
    the weights of the old one.

    Args:
        weights: ``recall -> [K]``: from float64 [K] in [0, 1] (NaN for a class without a validation
            sample) to the weight of each class, 0 or more; a function of
            :mod:`lightning_fairprune.weighting` or your own.
        loss: name of the loss module, such as ``"criterion"`` or ``"head.loss"``; ``"auto"`` finds it
            if there is only one; None changes no module, the step reads `weight`.
        recall_window: number of latest validations whose class counts are pooled.
        update_every: validations between updates of the weights; the first validation sets them.
        shrinkage: how far recalls are pulled to the mean, as in `DataPruning`: by so many pseudo-samples at the
            mean recall for every class, or ``"auto"``. With 0, as published, a class without an error gets
            weight 0, and a batch of that class alone a loss of 0 / 0.
        recall_dataloader: index of the validation loader that the recalls come from.
        logits_fn: ``(module, batch) -> (logits, target)``, for all callbacks of the Trainer, where steps do not
            show one prediction (see the guide); costs one forward pass a batch.

    Raises:
        ValueError: If an argument is out of range; at fit start, if there is no validation or not
            exactly one loss to weight; after a validation, if it had no sample or `weights` returned no
            valid weights; after the first weighted epoch, if with ``loss=None`` no step has read `weight`.

    Example:
        >>> ClassWeighting(loss="criterion", recall_window=3).settings.recall_window
        3
    """

    def __init__(
        self,
        weights: Callable[..., Any] = cdb_w,
        loss: str | None = "auto",
        *,
        recall_window: int = 1,
        update_every: int = 1,
        shrinkage: float | Literal["auto"] = 10.0,
        recall_dataloader: int = 0,
        logits_fn: LogitsFn | None = None,
    ) -> None:
        self.settings = WeightingSettings(**given(locals()))
        self._trainer: pl.Trainer | None = None
        self._resumes = True  # other stages restore the state of the fit, too
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        """Pickles settings and results, without Trainer and model."""
        return without_fit(self, _trainer=None, _criterion=None, _own=None)

    def _forget(self) -> None:
        settings = self.settings
        self._recalls = RecallWindow(settings.recall_window, settings.shrinkage)
        self._validations = 0
        self._epochs_done = 0
        self._resumed = False
        self._validation = Validation(settings.recall_dataloader)
        self._weight: Tensor | None = None
        self._criterion: Loss | None = None
        self._own: tuple[Tensor | None] | None = None
        self._offered = self._was_read = False

    @property
    def weight(self) -> Tensor | None:
        """Weights for the training steps, float [K], on the device and in the dtype of the logits.

        In mixed precision they are float32. None before the first validation and during evaluations, so
        that one step can serve training and validation. Updates change the tensor in place.
        """
        if self._trainer is not None and self._trainer.evaluating:
            return None
        self._was_read = self._was_read or self._weight is not None
        return self._weight

    # ---------------------------------------------------------------------------- start and end

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Resets the state for a new fit."""
        self._trainer = trainer
        self._resumes = stage == "fit"
        if stage == "fit":
            self._forget()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Finds the loss; raises if there is none or no validation."""
        if not trainer.enable_validation:
            raise ValueError(
                "ClassWeighting needs the recall of each class, but there is no validation: give a "
                "val_dataloader and a validation_step (and limit_val_batches > 0)."
            )
        name = self.settings.loss
        self._criterion = None if name is None else _find(pl_module, name)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Continues with the weights of a checkpoint; raises for what no validation could count."""
        one_loader_a_batch(trainer)
        if self._weight is not None:
            self._weight = self._weight.to(pl_module.device)
        if self._resumed:
            self._validation.resumed(trainer.current_epoch)
            if trainer.current_epoch > self._epochs_done:
                self._check_validated(trainer, trainer.current_epoch - 1)
        self._epochs_done = trainer.current_epoch

    def _check_validated(self, trainer: pl.Trainer, epoch: int) -> None:
        if self._validation.lacks(trainer, epoch):
            rank_zero_warn(
                f"the checkpoint was taken on the last batch of epoch {epoch}, before the end of its "
                "validation, so its recalls are missing: class weights stay those of the validation "
                "before it. Checkpoints at the end of an epoch resume exactly."
            )

    def on_exception(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        """Stops observing and restores the loss."""
        abandon(trainer)
        self._restore_loss()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Restores the loss."""
        self._restore_loss()
        self._criterion = self._trainer = None

    # ------------------------------------------------------------------------------ one training step

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Sets the weights of the loss."""
        if self._weight is None:
            return
        self._offered = True
        if self._criterion is not None and self._own is None:
            self._own = (self._criterion.weight,)
            self._criterion.weight = self._weight

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        """Restores the loss, before the module is saved."""
        self._restore_loss()

    def _restore_loss(self) -> None:
        if self._own is not None:
            assert self._criterion is not None
            (self._criterion.weight,) = self._own
            self._own = None

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Raises if no step has read weights that it should read."""
        self._restore_loss()  # Lightning skips the end of a step that returns None
        self._epochs_done = trainer.current_epoch + 1
        self._check_validated(trainer, trainer.current_epoch)
        if self.settings.loss is None and self._offered and not self._was_read:
            raise ValueError(
                "ClassWeighting(loss=None) sets no weights itself, and no training step has read "
                "`weight` in an epoch: pass `weight=callback.weight` to cross_entropy, or let `loss` "
                "name an nn.CrossEntropyLoss of the module."
            )

    # ------------------------------------------------------------------------------- validation

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts a new count."""
        self._restore_loss()
        self._validation.begin(trainer, wanted=trainer.state.fn == "fit")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Updates the weights, except after the sanity check."""
        counts = self._validation.finish(trainer, pl_module)
        if counts is None:
            return
        self._recalls.add(counts)
        self._validations += 1
        if (self._validations - 1) % self.settings.update_every:
            return
        recall = self._recalls.recall()
        if len(recall) == 0:
            raise ValueError(
                f"the validation loader {self.settings.recall_dataloader} (`recall_dataloader`) must give at "
                "least one batch, it gave none."
            )
        weight = _checked(self.settings.weights(recall), len(recall))
        # None on a rank without a batch.
        device, dtype = self._validation.where(trainer) or (pl_module.device, pl_module.dtype)
        assert isinstance(dtype, torch.dtype)
        if "mixed" in str(trainer.precision):
            dtype = torch.promote_types(dtype, torch.float32)
        if self._weight is None:
            self._weight = weight.to(device, dtype, copy=True)
        else:
            self._weight.copy_(weight)

    # --------------------------------------------------------------------------------- resuming

    def state_dict(self) -> dict[str, Any]:
        """Returns counts and weights, as CPU tensors and primitives."""
        return {
            "recalls": self._recalls.state_dict(),
            "validations": self._validations,
            "epochs_done": self._epochs_done,
            "validated": self._validation.step,
            "weight": None if self._weight is None else self._weight.cpu().clone(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues where `state_dict` was taken; a fit alone does."""
        if not self._resumes:
            return
        self._recalls.load_state_dict(state_dict["recalls"])
        self._validations = state_dict["validations"]
        self._epochs_done = state_dict["epochs_done"]
        self._validation.step = state_dict.get("validated", -1)  # missing in older ones
        self._weight = state_dict["weight"]
        self._resumed = True


def _find(module: pl.LightningModule, name: str) -> Loss:
    """Returns the only loss that takes class weights, or the one of that name."""
    losses = {path: part for path, part in module.named_modules() if isinstance(part, Loss)}
    found = ", ".join(map(repr, losses)) or "none"
    if name == "auto":
        if len(losses) == 1:
            return next(iter(losses.values()))
        remedy = (
            "name one of them: `loss=...`."
            if losses
            else "if training_step calls torch.nn.functional.cross_entropy, pass `loss=None` and give "
            "it `weight=callback.weight`."
        )
        raise ValueError(
            "`loss='auto'` needs exactly one nn.CrossEntropyLoss or nn.NLLLoss among the modules of "
            f"{type(module).__name__}, found {found}: {remedy}"
        )
    part = dict(module.named_modules(remove_duplicate=False)).get(name)
    part = getattr(part, "_orig_mod", part)  # of torch.compile
    if not isinstance(part, Loss):
        what = "nothing" if part is None else type(part).__name__
        raise ValueError(
            "`loss` must name an nn.CrossEntropyLoss or nn.NLLLoss of "
            f"{type(module).__name__}, {name!r} is {what}; there is {found}."
        )
    return part


def _checked(found: Any, num_classes: int) -> Tensor:
    """Returns the weights of the user's function, float64 [K] on the CPU."""
    weight = torch.as_tensor(found, dtype=torch.float64).detach().cpu()
    if weight.shape != (num_classes,):
        raise ValueError(
            f"`weights` must return one weight for each of {num_classes} classes, got shape "
            f"{list(weight.shape)}."
        )
    good = weight.isfinite() & (weight >= 0)
    if not good.all() or not weight.any():
        raise ValueError(
            "`weights` must return finite weights of 0 or more, not all of them 0, got "
            f"{weight.tolist()}."
        )
    return weight
