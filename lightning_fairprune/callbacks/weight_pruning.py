"""The callback that prunes the weights of a model while it trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from lightning_fairprune import criteria, masks
from lightning_fairprune._lightning.snapshot import Snapshot
from lightning_fairprune._observe.groups import GroupBy
from lightning_fairprune.callbacks._together import check_reference
from lightning_fairprune.callbacks._weights import checks
from lightning_fairprune.callbacks._weights.masks import (
    MaskedWeights,
    agreed,
    averages,
    selected,
    unpack,
)
from lightning_fairprune.callbacks._weights.plan import (
    Plan,
    end_of_training,
    is_dry,
    training_is_over,
)
from lightning_fairprune.callbacks._weights.record import announce, save, step_of, values
from lightning_fairprune.callbacks._weights.saliency import (
    check_criterion,
    reads_batches,
    saliency,
)
from lightning_fairprune.callbacks._weights.settings import LossFn, WeightSettings
from lightning_fairprune.records.sparsity_record import PruneStep, SparsityRecord

__all__ = ["WeightPruning"]


class WeightPruning(pl.Callback):
    """Removes the least important weights of a model on the way, and trains the others on.

    Pruned weights are zero, exactly and from then on: after every step of every optimiser, in every
    checkpoint, in the model that `fit` leaves behind. Parameters stay the parameters they are, so
    checkpoints load anywhere, without this library, and there is nothing to make permanent. Zeros
    do not make dense kernels faster, nor checkpoints smaller.

    A pruning runs after the last step of an epoch, before its validation, so that what is monitored
    is measured on the weights that are saved. It never runs after the last epoch.

    Args:
        criterion: how much each weight matters: a function of
            :mod:`lightning_fairprune.criteria` or your own with the same parameters. It is given what
            its parameters name: ``batches`` and ``loss_fn`` (the loss of your ``training_step``),
            ``example_input``, ``weight_decay`` (of your optimisers), ``groups``, ``seed``, ``masks``,
            ``sparsity``. One that returns bool masks decides alone, without `scope`.
        sparsity: fraction of weights to remove in the end, in (0, 1), of those that may be pruned.
        schedule: how to get there, a function of :mod:`lightning_fairprune.masks.schedules`.
        start: first pruning: whole epochs that are done by then, or a fraction of training; 0 prunes
            before the first step.
        end: no pruning after so many epochs, or that fraction of training; at least one epoch follows.
        every: epochs between prunings.
        interval: ``"epoch"``, or ``"step"`` to count `start`, `end` and `every` in optimiser steps.
        scope: how layers share the sparsity, a function of :mod:`lightning_fairprune.masks`.
        include: patterns such as ``"encoder.*.weight"`` of parameters to prune; by default the
            weights of all linear and convolution layers, never biases or normalisation.
        exclude: patterns of parameters to leave alone.
        keep_classifier: whether the last linear layer that is trained stays dense. A class that loses
            its few weights there cannot be recalled at all.
        floor: weights that each layer keeps at least.
        num_batches: batches of the training loader that the criterion sees, on each rank.
        dataloader: a loader for the criterion in place of the training loader.
        loss_fn: ``(module, batch) -> loss`` for the criterion, where that of ``training_step`` will not
            do.
        criterion_options: more named arguments of the criterion, such as ``{"num_groups": 10}``.
        group_by: groups for criteria that ask for them: the key or position of the group ids in a batch,
            or a function from the batch to them, int [B]; by default the classes of pairs (input, class).
        rewind: after each pruning, put weights, optimisers and schedules back to where they were at
            ``"start"`` or after so many epochs, as for lottery tickets; None trains on.
        seed: of random criteria and of the choice of batches.

    Attributes:
        masks: by parameter name, bool, True = kept; empty before the first pruning.
        history: a :class:`~lightning_fairprune.records.sparsity_record.PruneStep` for each pruning.
        record: the same with the settings, a :class:`~lightning_fairprune.records.sparsity_record.SparsityRecord`; the
            folder of the logger gets it as ``fairprune/sparsity.json``.

    Raises:
        ValueError: If an argument is out of range; at fit start, if the plan does not fit into training
            or model, optimiser and Trainer cannot work with it.
        TypeError: At fit start, if the criterion needs batches that nobody can give it.

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
        self.settings = WeightSettings(
            criterion=criterion,
            sparsity=sparsity,
            schedule=schedule,
            start=start,
            end=end,
            every=every,
            interval=interval,
            scope=scope,
            include=include,
            exclude=exclude,
            keep_classifier=keep_classifier,
            floor=floor,
            num_batches=num_batches,
            dataloader=dataloader,
            loss_fn=loss_fn,
            criterion_options=dict(criterion_options or {}),
            group_by=group_by,
            rewind=rewind,
            seed=seed,
        )
        self._timing = self.settings.timing
        self._working: MaskedWeights | None = None
        self._forget()

    def _forget(self) -> None:
        self._detach()
        self._working = None
        self.history: list[PruneStep] = []
        self._names: tuple[str, ...] = ()
        self._total = 0
        self._plan: Plan | None = None
        self._done = 0
        self._snapshot: Snapshot | None = None
        self._rewind_due = False
        self._restored: Mapping[str, Any] | None = None

    @property
    def masks(self) -> dict[str, Tensor]:
        """The masks in force, by parameter name, bool, True = kept."""
        if self._restored is not None:
            return unpack(self._restored["masks"])
        return {} if self._working is None else self._working.masks

    @property
    def pruned(self) -> bool:
        """Whether any weight has been removed."""
        return bool(self.history)

    @property
    def record(self) -> SparsityRecord:
        """What was done so far."""
        return SparsityRecord(self.settings.as_text(), tuple(self.history))

    # -------------------------------------------------------------------------------- begin and end

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Begins anew; checks what can be checked before any work."""
        if stage != "fit":
            return
        self._forget()
        checks.strategy(trainer)
        if self.settings.interval == "epoch" and not is_dry(trainer):
            self._plan = self._timing.plan(end_of_training(trainer, "epoch"))

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Finds the weights to prune. Not in `setup`: the module may build its layers after that."""
        self._names = selected(
            pl_module, self.settings.include, self.settings.exclude, self.settings.keep_classifier
        )
        check_criterion(self.settings, pl_module)
        named = dict(pl_module.named_parameters())
        checks.sizes(self.settings, {name: named[name].numel() for name in self._names})
        self._total = sum(named[name].numel() for name in self._names)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Goes on where a checkpoint was taken, or prunes at initialisation."""
        self._working = MaskedWeights(pl_module, trainer.optimizers)
        if is_dry(trainer):
            rank_zero_info("WeightPruning: a fast_dev_run ends too soon; nothing is pruned.")
            return
        if self.settings.interval == "step":
            self._plan = self._timing.plan(end_of_training(trainer, "step"))
        if self._restored is not None:
            self._restore(self._restored)
        assert self._plan is not None
        checks.plan(self.settings, trainer, self._plan)
        self._remember(trainer, pl_module)
        self._prune_if_due(trainer, pl_module, trainer.current_epoch, trainer.current_epoch)

    def _restore(self, state: Mapping[str, Any]) -> None:
        assert self._working is not None
        self._plan = self._timing.restored(state["plan"]) or self._plan
        found = unpack(state["masks"])
        if found and tuple(found) != self._names:
            raise ValueError(
                f"the checkpoint has masks of {', '.join(found)}, but this fit prunes "
                f"{', '.join(self._names)}: resume with the same model, `include` and `exclude`."
            )
        self._working.set(found)
        self._restored = None

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Says so if training ended before the pruning did."""
        if self._plan is not None and self._done < len(self._plan.at):
            reached = self.history[-1].total if self.history else 0.0
            rank_zero_warn(
                f"training ended at a sparsity of {reached:.4g} where {self.settings.sparsity} was planned, "
                f"before pruning {self._done + 1} of {len(self._plan.at)}: prevent early stopping "
                "with Trainer(min_epochs=...), or lower `end`."
            )

        save(trainer, self.record)  # also of a resumed fit that had nothing left to prune

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Lets go of the optimisers."""
        self._detach()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Lets go of the optimisers; the masks stay to be looked at."""
        if stage == "fit":
            self._detach()

    def _detach(self) -> None:
        if self._working is not None:
            self._working.detach()

    # ------------------------------------------------------------------------------------- each step

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remembers the weights to rewind to."""
        self._remember(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Rewinds. Not at the pruning: the Trainer steps schedules after that."""
        if self._rewind_due:
            assert self._snapshot is not None
            assert self._working is not None
            self._snapshot.restore(trainer, pl_module)
            self._working.enforce()
            self._rewind_due = False

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any
    ) -> None:
        """Zeroes the gradients of removed weights before they are clipped."""
        if self._working is not None:
            self._working.zero_gradients(optimizer)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Prunes where it is due, ahead of the validation and of checkpoints."""
        last = trainer.is_last_batch or batch_idx + 1 >= trainer.num_training_batches
        epochs, epoch = trainer.current_epoch + bool(last), trainer.current_epoch + 1
        if self._prune_if_due(trainer, pl_module, epochs, epoch):
            # For callbacks that monitor in the validation to come; loggers have it already.
            pl_module.log_dict(values(self._last), logger=False)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs the sparsity; prunes after an epoch whose last batch the module skipped."""
        epochs = trainer.current_epoch + 1
        self._prune_if_due(trainer, pl_module, epochs, epochs)
        pl_module.log_dict(values(self._last), sync_dist=trainer.world_size > 1)

    # ------------------------------------------------------------------------------------ one pruning

    @property
    def _last(self) -> PruneStep | None:
        return self.history[-1] if self.history else None

    def _prune_if_due(
        self, trainer: pl.Trainer, module: pl.LightningModule, epochs: int, epoch: int
    ) -> bool:
        """Prunes if `epochs` that are done, or the steps, say so; `epoch` is the one under way."""
        if self._plan is None:
            return False
        due = self._plan.due(epochs if self.settings.interval == "epoch" else trainer.global_step)
        if due <= self._done or training_is_over(trainer, epochs):
            return False
        target = self._plan.sparsity[due - 1]
        before = 0.0 if self._last is None else self._last.total
        rises = round(target * self._total) > round(before * self._total)
        if rises:  # or else the schedule has arrived
            self._prune(trainer, module, target, epoch, due)
        self._done = due  # not before: a checkpoint of a fit that failed in it must not say so
        return rises

    def _prune(
        self, trainer: pl.Trainer, module: pl.LightningModule, target: float, epoch: int, due: int
    ) -> None:
        assert self._working is not None
        found = saliency(
            self.settings,
            trainer,
            module,
            self._names,
            masks=self.masks,
            sparsity=target,
            draw=self.settings.seed + due,
        )
        scope = self.settings.scope
        if all(value.dtype == torch.bool for value in found.values()):
            # Masks already: the exact count and what was removed before still hold.
            found, scope = {name: value.float() for name, value in found.items()}, masks.globally
        new = scope(found, target, floor=self.settings.floor, keep=self.masks or None)
        new = agreed(trainer, new, from_data=reads_batches(self.settings.criterion))
        self._working.set(new)
        self._working.enforce()
        for average in averages(trainer):
            masks.apply(average, self.masks)
        self._rewind_due = self.settings.rewind is not None
        if not self.history:
            check_reference(trainer)
        self.history.append(step_of(epoch, trainer.global_step, target, new))
        announce(trainer, self.history[-1], self._total)
        save(trainer, self.record)

    def _remember(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self.settings.rewind is None or self._plan is None or self._snapshot is not None:
            return
        if trainer.current_epoch == self.settings.rewind_epoch:
            self._snapshot = Snapshot.take(trainer, module)
        elif trainer.current_epoch > self.settings.rewind_epoch:
            raise ValueError(
                f"`rewind` goes back to epoch {self.settings.rewind_epoch}, but the checkpoint lacks its "
                "weights: resume from one that was written with the same `rewind`."
            )

    # --------------------------------------------------------------------------------------- resuming

    def state_dict(self) -> dict[str, Any]:
        """Returns masks, plan and what to rewind to, as CPU tensors and primitives."""
        if self._restored is not None:
            return dict(self._restored)  # training has not begun yet
        return {
            "plan": self._timing.state_dict(self._plan),
            "masks": {} if self._working is None else self._working.state_dict(),
            "done": self._done,
            "history": [list(pruning) for pruning in self.history],
            "snapshot": None if self._snapshot is None else self._snapshot.state_dict(),
            "rewind_due": self._rewind_due,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues where `state_dict` was taken."""
        self._restored = state_dict
        self._done = state_dict["done"]
        self.history = [PruneStep(*row) for row in state_dict["history"]]
        if state_dict["snapshot"] is not None:
            self._snapshot = Snapshot.from_state_dict(state_dict["snapshot"])
        self._rewind_due = state_dict["rewind_due"]
        if self._working is not None and self._working.at_work:
            self._restore(state_dict)  # a tuner that puts back what it tried out during the fit
