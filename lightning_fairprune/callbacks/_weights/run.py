"""What WeightPruning knows and does in one fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn
from torch import Tensor

from lightning_fairprune import masks
from lightning_fairprune._lightning.snapshot import Snapshot
from lightning_fairprune.callbacks._data.length import training_is_over
from lightning_fairprune.callbacks._run_folder import run_folder
from lightning_fairprune.callbacks._together import check_reference
from lightning_fairprune.callbacks._training import training_of
from lightning_fairprune.callbacks._weights import checks
from lightning_fairprune.callbacks._weights.masks import (
    MaskedWeights,
    agreed,
    averages,
    outside_metrics,
    selected,
    unpack,
)
from lightning_fairprune.callbacks._weights.plan import (
    Plan,
    end_of_training,
    is_dry,
    plan_of,
    plan_state,
    restored_plan,
)
from lightning_fairprune.callbacks._weights.saliency import check_criterion, reads_batches, saliency
from lightning_fairprune.callbacks._weights.settings import WeightSettings
from lightning_fairprune.records.sparsity_record import PruneStep, SparsityRecord

if TYPE_CHECKING:
    from lightning_fairprune.callbacks._weights.first_step import FirstStep


class WeightRun:
    """One fit: its plan, its masks, the prunings so far, and the weights that a rewind puts back."""

    def __init__(self, settings: WeightSettings) -> None:
        self.settings = settings
        self.history: list[PruneStep] = []
        self._sizes: dict[str, int] = {}  # of the parameters to prune
        self._all = 0  # parameters of the model
        self._first: FirstStep | None = None
        self._plan: Plan | None = None
        self._done = 0  # prunings of the plan
        self._working: MaskedWeights | None = None
        self._snapshot: Snapshot | None = None
        self._rewind_due = False
        self._restored: Mapping[str, Any] | None = None  # until training starts

    def __getstate__(self) -> dict[str, Any]:
        """Pickles the results, without the weights to rewind to."""
        restored = None if self._restored is None else dict(self._restored, snapshot=None)
        return self.__dict__ | {"_first": None, "_snapshot": None, "_restored": restored}

    @property
    def begun(self) -> bool:
        """Whether a fit has trained with it."""
        return self._working is not None

    def has_trained(self, module: pl.LightningModule) -> bool:
        """Whether a fit has trained this model with it."""
        return self._working is not None and self._working.is_of(module)

    @property
    def masks(self) -> dict[str, Tensor]:
        """The current masks, by parameter name, bool, True = kept."""
        if self._restored is not None:
            return unpack(self._restored["masks"])
        return {} if self._working is None else self._working.masks

    @property
    def record(self) -> SparsityRecord:
        """The settings and the prunings so far."""
        return SparsityRecord(self.settings.as_text(), tuple(self.history))

    @property
    def logged(self) -> dict[str, float]:
        """The current sparsity, by the names that are logged."""
        found = [0.0] * 4
        if self.history:
            layers, of_all = self.history[-1].layers.values(), self.history[-1].of_all
            of_all = self._share(self._sparsity) if of_all is None else of_all
            found = [self._sparsity, of_all, min(layers), max(layers)]
        names = ("total", "of_all", "layer/min", "layer/max")
        return {f"sparsity/{name}": value for name, value in zip(names, found, strict=True)}

    @property
    def _sparsity(self) -> float:
        return self.history[-1].total if self.history else 0.0

    def _share(self, sparsity: float) -> float:
        """Returns the fraction removed of all parameters, where `sparsity` of those to prune is."""
        return round(sparsity * sum(self._sizes.values())) / max(self._all, 1)

    # ------------------------------------------------------------------------------- start and end

    def plan(self, trainer: pl.Trainer, interval: str) -> None:
        """Makes the plan if it counts in `interval`."""
        if self.settings.interval == interval and not is_dry(trainer):
            self._plan = plan_of(self.settings, end_of_training(trainer, interval))

    def find(self, module: pl.LightningModule) -> None:
        """Finds the weights to prune, and checks what can be checked before training."""
        settings = self.settings
        names = selected(module, settings.include, settings.exclude, settings.keep_classifier)
        # What a fit alone needs is imported when one begins.
        from lightning_fairprune._model.hidden import check_layers
        from lightning_fairprune.callbacks._weights.first_step import FirstStep

        check_layers(module, names, masked=True)
        check_criterion(settings, module)
        named = dict(module.named_parameters())
        self._sizes = {name: named[name].numel() for name in names}
        self._all = sum(parameter.numel() for parameter in outside_metrics(module).values())
        checks.sizes(settings, self._sizes)
        self._first = FirstStep(settings, names)

    def start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Prunes at initialisation, or continues where a checkpoint was taken."""
        self._working = MaskedWeights(module, trainer.optimizers)
        if is_dry(trainer):
            rank_zero_info("WeightPruning: a fast_dev_run ends too soon; nothing is pruned.")
            return
        self.plan(trainer, "step")
        if self._restored is not None:
            self._restore(self._restored)
        assert self._plan is not None
        if self._done == 0:
            checks.begins_before(self.settings, trainer, self._plan)
        checks.plan(self.settings, trainer, self._plan)
        self.remember(trainer, module)
        self.prune_if_due(trainer, module, trainer.current_epoch, trainer.current_epoch)

    def end(self, trainer: pl.Trainer) -> None:
        """Warns if training ended before the last pruning, and saves the record."""
        if self._plan is not None and self._done < len(self._plan.at):
            rank_zero_warn(
                f"training ended at a sparsity of {self._sparsity:.4g} where {self.settings.sparsity} was planned, "
                f"before pruning {self._done + 1} of {len(self._plan.at)}: prevent early stopping "
                "with Trainer(min_epochs=...), or lower `end`."
            )
        self._save(trainer)  # also of a resumed fit that had nothing left to prune

    def detach(self) -> None:
        """Removes what was attached to module and optimisers, and moves the masks to the host."""
        if self._first is not None:
            self._first.close()
        if self._working is not None:
            self._working.detach()

    # ---------------------------------------------------------------------------------- each step

    def before_step(self, module: pl.LightningModule, batch: Any) -> None:
        """Has the first step observed."""
        if self._first is not None and not self._first.opened:
            self._first.open(module, batch)

    def before_backward(self) -> None:
        """Stops observing."""
        if self._first is not None:
            self._first.stop()

    def zero_gradients(self, optimizer: Any) -> None:
        """Zeroes the gradients of removed weights."""
        if self._working is not None:
            self._working.zero_gradients(optimizer)

    def remember(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Takes the snapshot to rewind to, if this is its epoch."""
        epoch = self.settings.rewind_epoch
        if self.settings.rewind is None or self._plan is None or self._snapshot is not None:
            return
        if trainer.current_epoch == epoch:
            self._snapshot = Snapshot.take(trainer, module)
        elif trainer.current_epoch > epoch:
            raise ValueError(
                f"`rewind` goes back to epoch {epoch}, but the checkpoint lacks its "
                "weights: resume from one that was written with the same `rewind`."
            )

    def rewind_if_due(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Puts the snapshot back after a pruning. At its end the Trainer would step schedules after it."""
        if self._rewind_due:
            assert self._snapshot is not None
            assert self._working is not None
            self._snapshot.restore(trainer, module)
            self._working.enforce()
            self._rewind_due = False

    def prune_if_due(
        self, trainer: pl.Trainer, module: pl.LightningModule, epochs: int, epoch: int
    ) -> bool:
        """Prunes if it is due after `epochs` epochs; `epoch` goes into the history."""
        if self._plan is None:
            return False
        due = self._plan.due(epochs if self.settings.interval == "epoch" else trainer.global_step)
        if due <= self._done or training_is_over(trainer, epochs):
            return False
        target, total = self._plan.sparsity[due - 1], sum(self._sizes.values())
        rises = round(target * total) > round(self._sparsity * total)
        if rises:  # else an earlier pruning has reached the target
            self._prune(trainer, module, target, epoch, self.settings.seed + due)
        self._done = due  # last, so that a checkpoint of a failed pruning repeats it
        return rises

    def _prune(
        self, trainer: pl.Trainer, module: pl.LightningModule, target: float, epoch: int, draw: int
    ) -> None:
        assert self._working is not None
        settings, scope, before = self.settings, self.settings.scope, self._working.masks
        found = saliency(
            settings, trainer, module, tuple(self._sizes), masks=before, sparsity=target, draw=draw
        )
        if all(value.dtype == torch.bool for value in found.values()):
            # Masks already; ranking them keeps the exact count, and removed weights stay removed.
            found, scope = {name: value.float() for name, value in found.items()}, masks.globally
        new = scope(found, target, floor=settings.floor, keep=before or None)
        new = agreed(trainer, new, from_data=reads_batches(settings.criterion))
        self._working.set(new)
        self._working.enforce()
        from lightning_fairprune._model.hidden import check_finite

        check_finite(module, tuple(self._sizes))
        for average in averages(trainer):
            masks.apply(average, self._working.masks)
        self._rewind_due = settings.rewind is not None
        if not self.history:
            check_reference(trainer)
        sparsity = masks.sparsity_of(new)
        of_all = self._share(sparsity.total)
        step = PruneStep(
            epoch, trainer.global_step, target, sparsity.total, sparsity.layers, of_all
        )
        self.history.append(step)
        self._announce(trainer, step)
        self._save(trainer)

    @rank_zero_only
    def _announce(self, trainer: pl.Trainer, step: PruneStep) -> None:
        layers = {f"sparsity/layer/{name}": value for name, value in step.layers.items()}
        for logger in trainer.loggers:
            logger.log_metrics(self.logged | layers, step=trainer.global_step)
        sparsest = max(step.layers, key=lambda name: step.layers[name])
        total = sum(self._sizes.values())
        rank_zero_info(
            f"WeightPruning: after {step.step} steps {round(step.total * total):,} of {total:,} weights are "
            f"removed ({step.total:.2%}), {step.of_all:.2%} of all {self._all:,} parameters of the model; the "
            f"sparsest layer is `{sparsest}` ({step.layers[sparsest]:.2%})."
        )

    @rank_zero_only
    def _save(self, trainer: pl.Trainer) -> None:
        folder = run_folder(trainer)
        if folder is not None and self.history:
            replace(self.record, training=training_of(trainer)).save(folder)

    # ---------------------------------------------------------------------------------- resuming

    def state_dict(self) -> dict[str, Any]:
        """Returns masks, plan and snapshot, as CPU tensors and primitives."""
        if self._restored is not None:
            return dict(self._restored)
        return {
            "plan": plan_state(self.settings, self._plan),
            "masks": {} if self._working is None else self._working.state_dict(),
            "done": self._done,
            "history": [list(pruning) for pruning in self.history],
            "snapshot": None if self._snapshot is None else self._snapshot.state_dict(),
            "rewind_due": self._rewind_due,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues where `state_dict` was taken."""
        self._restored = state
        self._done = state["done"]
        self.history = [PruneStep(*row) for row in state["history"]]
        if state["snapshot"] is not None:
            self._snapshot = Snapshot.from_state_dict(state["snapshot"])
        self._rewind_due = state["rewind_due"]
        if self._working is not None and self._working.at_work:
            self._restore(state)  # a tuner puts back what it tried out during the fit

    def _restore(self, state: Mapping[str, Any]) -> None:
        assert self._working is not None
        self._plan = restored_plan(self.settings, state["plan"], self._plan) or self._plan
        found = unpack(state["masks"])
        if found and tuple(found) != tuple(self._sizes):
            raise ValueError(
                f"the checkpoint has masks of {', '.join(found)}, but this fit prunes "
                f"{', '.join(self._sizes)}: resume with the same model, `include` and `exclude`."
            )
        self._working.set(found)
        self._restored = None
