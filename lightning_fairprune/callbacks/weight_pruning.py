"""The callback that prunes the weights of a model while it trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import lightning.pytorch as pl
from torch import Tensor

from lightning_fairprune import criteria, masks
from lightning_fairprune._observe.groups import GroupBy
from lightning_fairprune.callbacks._arguments import given, without_fit
from lightning_fairprune.callbacks._run_folder import say_where
from lightning_fairprune.callbacks._training import OfTraining, forget_training, name_training
from lightning_fairprune.callbacks._weights import checks
from lightning_fairprune.callbacks._weights.run import WeightRun
from lightning_fairprune.callbacks._weights.settings import LossFn, WeightSettings
from lightning_fairprune.records.sparsity_record import PruneStep, SparsityRecord

__all__ = ["WeightPruning"]


class WeightPruning(OfTraining):
    """Removes the least important weights of a model during training, and trains the others.

    Removed weights stay exactly zero: after every step of every optimiser, in every checkpoint and in
    the model after `fit`. Parameters are not replaced, so checkpoints load anywhere, without this
    library, and there is nothing to make permanent. Zeros do not make dense kernels faster, nor
    checkpoints smaller.

    Weights are pruned after the last step of an epoch, before its validation, so that what is
    monitored is measured on the weights that are saved; never after the last epoch.

    Args:
        criterion: how much each weight matters: a function of
            :mod:`lightning_fairprune.criteria` or your own with the same parameters. It gets what
            its parameters name: ``batches`` and ``loss_fn`` (the loss of your ``training_step``),
            ``example_input``, ``weight_decay`` (of your optimisers), ``groups``, ``seed``, ``masks``,
            ``sparsity``. If it returns bool masks, `scope` is not used.
        sparsity: final fraction of removed weights, in (0, 1), of those that may be pruned.
        schedule: the sparsity of each pruning, a function of
            :mod:`lightning_fairprune.masks.schedules`.
        start: whole epochs before the first pruning, or a fraction of training; 0 prunes before the
            first step.
        end: epochs or fraction of training before the last pruning; at least one epoch follows.
        every: epochs between prunings.
        interval: ``"epoch"``, or ``"step"`` to count `start`, `end` and `every` in optimiser steps.
        scope: how layers share the sparsity, a function of :mod:`lightning_fairprune.masks`.
        include: patterns such as ``"encoder.*.weight"`` of parameters to prune; by default those of
            :func:`~lightning_fairprune.criteria.prunable`, the matrices and kernels of linear, convolution,
            recurrent and attention layers, never biases, normalisation or embeddings.
        exclude: patterns of parameters to leave alone.
        keep_classifier: whether the last trained linear layer stays dense. A class that loses its few
            weights there is never predicted.
        floor: weights that each layer keeps at least.
        num_batches: batches of the training loader that the criterion sees, on each rank.
        dataloader: a loader for the criterion in place of the training loader.
        loss_fn: ``(module, batch) -> loss`` for the criterion, in place of ``training_step``.
        criterion_options: more named arguments of the criterion, such as ``{"num_groups": 10}``.
        group_by: groups for criteria that need them: the key or position of the group ids in a batch, or
            a function from the batch to them, int [B]; by default the classes of pairs (input, class).
        rewind: state that weights, optimisers and schedules return to after each pruning, as for lottery
            tickets: ``"start"``, or a number of epochs; None continues training.
        seed: of random criteria and of the choice of batches.

    Attributes:
        masks: by parameter name, bool, True = kept; empty before the first pruning.
        history: a :class:`~lightning_fairprune.records.sparsity_record.PruneStep` for each pruning.
        record: the same with the settings, a :class:`~lightning_fairprune.records.sparsity_record.SparsityRecord`; the
            folder of the logger gets it as ``fairprune/sparsity.json``.

    Raises:
        ValueError: If an argument is out of range; at fit start, if the plan does not fit into training
            or does not work with model, optimiser or Trainer; there or in the first step, if a layer computes with
            a weight that does not have the zeros of its parameter.
        TypeError: At fit start, if the criterion needs batches that the callback cannot provide.

    Example:
        >>> WeightPruning(
        ...     criteria.gradient, sparsity=0.9, start=0.5, schedule=masks.schedules.one_shot
        ... ).settings.sparsity
        0.9
    """

    def __init__(
        self,
        criterion: Callable[..., Any] = criteria.magnitude,
        sparsity: float = 0.9,
        *,
        schedule: Callable[..., Any] = masks.schedules.cubic,
        start: int | float = 0.25,
        end: int | float = 0.75,
        every: int = 1,
        interval: Literal["epoch", "step"] = "epoch",
        scope: Callable[..., Any] = masks.globally,
        include: list[str] | None = None,
        exclude: list[str] | None = None,
        keep_classifier: bool = True,
        floor: int = 1,
        num_batches: int = 8,
        dataloader: Any = None,
        loss_fn: LossFn | None = None,
        criterion_options: dict[str, Any] | None = None,
        group_by: GroupBy | None = None,
        rewind: Literal["start"] | int | None = None,
        seed: int = 0,
    ) -> None:
        self.settings = WeightSettings(**given(locals()))
        self._run = WeightRun(self.settings)
        self._restores = True

    def __getstate__(self) -> dict[str, Any]:
        """Pickles settings and results, without Trainer and model."""
        return without_fit(self)

    @property
    def masks(self) -> dict[str, Tensor]:
        """The current masks, by parameter name, bool, True = kept."""
        return self._run.masks

    @property
    def history(self) -> list[PruneStep]:
        """Every pruning so far."""
        return self._run.history

    @property
    def pruned(self) -> bool:
        """Whether any weight has been removed."""
        return bool(self.history)

    @property
    def record(self) -> SparsityRecord:
        """The settings and every pruning so far."""
        return self._run.record

    # ------------------------------------------------------------------------------- start and end

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Starts a new run and checks what can be checked before any work."""
        # Other stages restore the state of a checkpoint, too, but they must not change what a fit left.
        self._restores = stage == "fit" or not self._run.begun
        if stage == "fit":
            before = self._run
            before.detach()
            self._run = WeightRun(self.settings)
            checks.strategy(trainer)
            forget_training(trainer)
            self._run.plan(trainer, "epoch")
            if before.has_trained(pl_module) and trainer.current_epoch > 0:  # the Trainer continues
                self._run.load_state_dict(before.state_dict())

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Finds the weights to prune; the module may build its layers after `setup`."""
        self._run.find(pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prunes at initialisation, or continues where a checkpoint was taken."""
        name_training(trainer)
        self._run.start(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Warns if training ended before the last pruning, and saves the record."""
        self._run.end(trainer)
        say_where(trainer, "WeightPruning", "masks", "history")

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Warns if there was no training, as with limit_train_batches=0."""
        if not self._run.begun:
            self._run.end(trainer)

    def on_exception(self, *_: Any, **__: Any) -> None:
        """Removes the hooks from the optimisers."""
        self._run.detach()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Removes the hooks from the optimisers; the masks stay."""
        if stage == "fit":
            self._run.detach()

    # ----------------------------------------------------------------------------------- each step

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Takes the snapshot to rewind to."""
        self._run.remember(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Rewinds after a pruning, and has the first step observed."""
        self._run.rewind_if_due(trainer, pl_module)
        self._run.before_step(pl_module, batch)

    def on_before_backward(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Any
    ) -> None:
        """Stops observing the first step."""
        self._run.before_backward()

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any
    ) -> None:
        """Zeroes the gradients of removed weights before they are clipped."""
        self._run.zero_gradients(optimizer)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Prunes if it is due, before the validation and before checkpoints."""
        last = trainer.is_last_batch or batch_idx + 1 >= trainer.num_training_batches
        epochs, epoch = trainer.current_epoch + bool(last), trainer.current_epoch + 1
        if self._run.prune_if_due(trainer, pl_module, epochs, epoch):
            # For callbacks that monitor in the next validation; loggers have it already.
            pl_module.log_dict(self._run.logged, logger=False)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs the sparsity; prunes after an epoch whose last batch the module skipped."""
        epochs = trainer.current_epoch + 1
        self._run.prune_if_due(trainer, pl_module, epochs, epochs)
        pl_module.log_dict(self._run.logged, sync_dist=trainer.world_size > 1)

    # ------------------------------------------------------------------------------------ resuming

    def state_dict(self) -> dict[str, Any]:
        """Returns masks, plan and snapshot, as CPU tensors and primitives."""
        return self._run.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues where `state_dict` was taken."""
        if not self._restores:
            return
        self._run.load_state_dict(state_dict)
