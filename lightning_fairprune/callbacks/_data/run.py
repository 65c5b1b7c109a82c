"""What DataPruning knows and decides in one fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn

from lightning_fairprune._loading.position import limited
from lightning_fairprune._loading.source import TrainSource
from lightning_fairprune._loading.wrapper import Wrapper
from lightning_fairprune._observe.ranks import check_same_on_all_ranks
from lightning_fairprune._observe.validation import RecallWindow, Validation
from lightning_fairprune.callbacks._data import checks
from lightning_fairprune.callbacks._data.discovery import Found
from lightning_fairprune.callbacks._data.length import is_cut, resolve_warmup
from lightning_fairprune.callbacks._data.phases import Due, Pruned, WarmingUp
from lightning_fairprune.callbacks._data.settings import DataSettings
from lightning_fairprune.callbacks._data.words import kept_in_words
from lightning_fairprune.callbacks._run_folder import run_folder
from lightning_fairprune.callbacks._training import training_of
from lightning_fairprune.counts import ClassCounts
from lightning_fairprune.records.label_errors import LabelErrors
from lightning_fairprune.records.pruning_record import PruningRecord
from lightning_fairprune.selection import Selection
from lightning_fairprune.selection.decision import Decision

if TYPE_CHECKING:
    from lightning_fairprune.callbacks._data.restart import Start


class PruningRun:
    """One fit: its settings, its data, the decision and the current phase."""

    def __init__(self, settings: DataSettings, trainer: pl.Trainer, source: TrainSource) -> None:
        self.settings, self.trainer, self.source = settings, trainer, source
        self.decision = Decision(
            settings.density,
            settings.quota,
            settings.keep,
            settings.seed,
            floor=settings.floor,
            cutoff=settings.cutoff,
            pool=settings.pool,
            repeat=settings.repeat,
            guard=settings.guard,
        )
        self.warmup = resolve_warmup(settings.warmup_epochs, trainer)
        self.recalls = RecallWindow(settings.recall_window, settings.shrinkage)
        self.validation = Validation(settings.recall_dataloader, settings.labelled)
        self.found: Found | None = None  # groups that were discovered
        self.phase: WarmingUp | Pruned | None = None  # None until training starts
        self.label_errors: LabelErrors | None = None
        self.steps_are_planned = False
        # The Trainer's step, -1 in a fit that was resumed later.
        self._swapped_at: int | None = None
        # A Trainer that has trained before continues to count; the warm-up counts what it observes.
        self.first_epoch, self.first_step = trainer.current_epoch, trainer.global_step
        self.swap_epoch = self.first_epoch + self.warmup
        """Epochs before the swap; the warm-up lasts longer where its recalls are late."""
        self._without_samples: set[int] = set()
        self._epochs_done = 0
        self._restored: Mapping[str, Any] | None = None
        self.knows_before = False
        """Whether the batches before the next one of the epoch are known."""

    def __getstate__(self) -> dict[str, Any]:
        """Pickles the results, without Trainer and data."""
        return self.__dict__ | {"trainer": None, "source": None, "_restored": None}

    @property
    def is_attached(self) -> bool:
        """Whether Trainer and data are known; a copy of the callback has none."""
        return self.trainer is not None

    @property
    def selection(self) -> Selection | None:
        """The samples in use; None in the warm-up."""
        return self.phase.selection if isinstance(self.phase, Pruned) else None

    @property
    def warming_up(self) -> WarmingUp | None:
        """The current phase, if it is the warm-up."""
        return self.phase if isinstance(self.phase, WarmingUp) else None

    @property
    def restarted(self) -> bool:
        """Whether the final model is trained, with ``after="restart"``."""
        final = isinstance(self.phase, Pruned) and self.phase.snapshot is None
        return final and self.settings.after == "restart"

    def restart(self, module: pl.LightningModule) -> None:
        """Restarts the model after the swap, if it is due. At the swap the Trainer would step schedules after it."""
        if not isinstance(self.phase, Pruned) or self.phase.snapshot is None:
            return
        start, trainer, self.phase.snapshot = self.phase.snapshot, self.trainer, None
        start.restore(trainer, module)
        # What planned the steps of the warm-up has those of the final model to plan.
        if self.steps_are_planned or not start.fits(trainer):
            with self.source.showing_all(self.batches(self.source.num_samples)):
                trainer.strategy.setup_optimizers(trainer)
        if not self.steps_are_planned:
            start.snapshot.restore_optimizers(trainer)

    def remember(self, module: pl.LightningModule) -> None:
        """Copies, before the first step, what the model will restart from."""
        phase, restarts = self.warming_up, self.settings.after == "restart"
        if restarts and phase is not None and phase.snapshot is None:
            # Only a fit that restarts has the cost of importing it.
            from lightning_fairprune.callbacks._data.restart import Start

            phase.snapshot = Start.take(self.trainer, module)

    def _start_of(self, state: Mapping[str, Any]) -> Start:
        from lightning_fairprune.callbacks._data.restart import Start

        return Start.from_state_dict(state, self.trainer.lightning_module)

    def _check_restart(self) -> None:
        from lightning_fairprune.callbacks._data.restart import check_callbacks

        check_callbacks(self.trainer, self.swap_epoch)

    def batches(self, samples: int) -> int:
        """Returns the batches of an epoch over so many samples."""
        return limited(self.source.num_batches(samples), self.trainer)

    @property
    def warm_up(self) -> WarmingUp | None:
        """The warm-up, current or past; None in a fit that was resumed after it."""
        return self.phase.warm_up if isinstance(self.phase, Pruned) else self.phase

    @property
    def needs_recall(self) -> bool:
        """Whether the recalls of the next validation can change a quota."""
        more = self.selection is None or self.settings.update_every is not None
        return self.decision.needs_recall and more

    def start(self, module: pl.LightningModule) -> None:
        """Starts the warm-up, or continues where a checkpoint was taken."""
        trainer, restored = self.trainer, self._restored
        checks.validation(self.settings, trainer)
        checks.sampling(self.settings, self.source)
        short = self.batches(self.decision.budget(self.source.num_samples))
        planned = self.steps_are_planned or self.settings.density == 1
        checks.stepping(trainer, planned=planned, batches=short)
        if restored is None or not restored.get("begun", True):  # older ones have begun
            self._begin(trainer.current_epoch)
        if self.settings.after == "restart" and not self.restarted:
            self._check_restart()
        if self.phase is None:
            snapshot = None
            if restored is not None and restored["snapshot"] is not None:
                snapshot = self._start_of(restored["snapshot"])
            self.phase = WarmingUp(self.settings, trainer, self.source, self.warmup, snapshot)
            if restored is not None and restored["record"] is not None:
                self.phase.observed.load_state_dict(restored["record"])
        if restored is not None:
            self.validation.resumed(trainer.current_epoch)
        self._catch_up()

    def _begin(self, epoch: int) -> None:
        """Starts the warm-up in an epoch, which is not the first one after a checkpoint without our state."""
        self.first_epoch, self._epochs_done = epoch, epoch
        self.swap_epoch = epoch + self.warmup
        checks.room(self.trainer, epoch, self.warmup)

    def _catch_up(self) -> None:
        """Ends the epoch that the Trainer does not end.

        It resumes a checkpoint of an epoch's last batch with the next epoch, without validation and end of
        the old one, and does not repeat an end that failed.
        """
        epoch = self.trainer.current_epoch - 1
        if epoch < self._epochs_done:
            return
        self.end_epoch(epoch)
        if self.selection is not None:
            self.source.request_reload(at_once=True)

    def end_epoch(self, epoch: int) -> None:
        """Closes the epoch's record; estimates quotas and draws samples if that is due."""
        if self.needs_recall and self.validation.lacks(self.trainer, epoch):
            rank_zero_warn(
                f"the checkpoint was taken on the last batch of epoch {epoch}, before the end of its "
                "validation, so its recalls are missing: quotas use the recalls before it. "
                "Checkpoints at the end of an epoch resume exactly."
            )
        before, warming_up = self.decision.state_dict(), self.warming_up
        recalls = self.recalls
        if warming_up is not None and warming_up.snapshot is not None:
            warming_up.snapshot.check(self.trainer.lightning_module)
        try:
            due = self._due(epoch)
            if any(due):
                self._decide(epoch, estimate=due.estimate)
        except BaseException:
            # A checkpoint on the exception must not hold half a decision.
            self.decision.load_state_dict(before)
            if warming_up is not None:
                self.recalls, self.found = recalls, None
                self.validation.group_by = self.settings.labelled
            raise
        self._epochs_done = epoch + 1
        if warming_up is not None and self.selection is not None:
            self._swapped_at, self.swap_epoch = self.trainer.global_step, epoch + 1
            self._report(epoch, self.selection)
            self.save()

    def end(self) -> None:
        """Saves the record, and warns if nothing was trained on the kept samples."""
        if not self.settings.dry_run and not getattr(self.trainer, "fast_dev_run", False):
            checks.trained_on_kept(self.trainer, self.warmup, self._swapped_at)
        self.save()

    def add_recalls(self, counts: ClassCounts) -> None:
        """Adds the counts of a validation; raises if training predicts other classes."""
        if self.warming_up is not None and self.settings.labelled is None:
            observed = self.warming_up.observed
            trained, validated = observed.recorder.num_classes, counts.num_classes
            if trained > 1 and validated and trained != validated:
                raise ValueError(
                    f"quotas need the recalls of the classes that are trained, but training_step predicts {trained} "
                    f"classes ({observed.name}) and the validation {validated} ({self.validation.name(self.trainer)}): "
                    "pass `logits_fn`, or return 'logits' and 'target' from both steps."
                )
        self.recalls.add(counts)

    def _due(self, epoch: int) -> Due:
        if not isinstance(self.phase, WarmingUp):
            return Pruned.due(self.settings, epoch + 1 - self.first_epoch - self.warmup)
        self.phase.observed.finish_epoch(epoch)
        # An epoch that is cut has not seen every sample, and none follows that could train on the kept ones.
        done = epoch + 1 - self.first_epoch
        over = done >= self.warmup and not is_cut(self.trainer, epoch)
        over = over and not self._recalls_are_late(done)
        if over:
            found = self.phase.close(self.decision)
            self.label_errors = self.phase.label_errors()
            if found is not None:
                # The recalls of the classes say nothing of the groups.
                self.recalls = RecallWindow(self.settings.recall_window, self.settings.shrinkage)
                if found.counts is not None:
                    self.recalls.add(found.counts)
                self._use(found)
        return Due(over, over)

    def _use(self, found: Found) -> None:
        self.found = found
        self.validation.group_by = found.placed(self.settings.recall_dataloader)

    def _recalls_are_late(self, done: int) -> bool:
        late = self.decision.needs_recall and not len(self.recalls)
        if late:
            rank_zero_warn(
                f"no validation has finished in {done} epochs, so there are no recalls "
                "to set quotas by: the warm-up lasts one more epoch."
            )
        return late

    def _decide(self, epoch: int, *, estimate: bool) -> None:
        if estimate:
            known, seen = self.decision.frozen, self.recalls
            given = (seen.recall(), seen.support()) if self.decision.needs_recall else ()
            self.decision.estimate(epoch, *given)
            checks.frozen(self.settings, self.decision, known, self.source.dataset)
        before, drawn = self.selection, self.decision.draw()
        check_same_on_all_ranks(self.trainer, drawn.indices)
        self._without_samples = checks.without_samples(
            self.settings, drawn, self._without_samples, self.source.dataset
        )
        if isinstance(self.phase, Pruned):
            self.phase.selection = drawn
        else:
            assert self.phase is not None
            self.phase = Pruned(drawn, self.phase, self.phase.snapshot)
        if self.settings.quota is not None:
            self.source.classes = self.decision.target
        if before is None or not torch.equal(before.indices, drawn.indices):
            self.source.keep(drawn.indices)
            checks.weights(self.source.sampler.weights, drawn, self.source.classes)

    def _report(self, epoch: int, selection: Selection) -> None:
        rank_zero_info(
            f"DataPruning: after epoch {epoch} training continues with {kept_in_words(selection)}"
        )
        if self.decision.scores is not None:
            rank_zero_info(f"DataPruning: {self.decision.by_score_alone()}.")

    @property
    def record(self) -> PruningRecord | None:
        """The selection, its labels, scores and estimates; None in the warm-up."""
        decision = self.decision
        if self.selection is None or decision.target is None:
            return None
        return PruningRecord(
            self.selection,
            decision.target,
            decision.scores,
            tuple(decision.history),
            self.settings.as_text(),
            label_errors=self.label_errors,
            group_class=None if self.found is None else self.found.classes,
        )

    @rank_zero_only
    def save(self) -> None:
        """Saves the record in the folder of the logger, for `fairprune report`."""
        folder, record = run_folder(self.trainer), self.record
        if folder is not None and record is not None:
            replace(record, training=training_of(self.trainer)).save(folder)

    def state_dict(self) -> dict[str, Any]:
        """Returns CPU tensors and primitives; all ranks must call this."""
        in_data = isinstance(self.trainer.datamodule, Wrapper)  # type: ignore[attr-defined]
        phase, restored = self.phase, self._restored or {}
        if phase is None:  # before training: what was restored
            record, snapshot = restored.get("record"), restored.get("snapshot")
        else:
            # After the warm-up the decision holds labels and scores.
            warming_up = self.warming_up
            record = None if warming_up is None else warming_up.observed.state_dict()
            snapshot = None if phase.snapshot is None else phase.snapshot.state_dict()
        selection = phase.state_dict() if isinstance(phase, Pruned) else None
        return {
            "settings": self.settings.to_resume(),
            "source": None if in_data else self.source.state_dict(),
            "record": record,
            "recalls": self.recalls.state_dict(),
            "decision": self.decision.state_dict(),
            "selection": selection,
            "groups": None if self.found is None else self.found.state_dict(),
            "begun": phase is not None or self._restored is not None,
            "warmup": self.warmup,
            "first_epoch": self.first_epoch,
            "epochs_done": self._epochs_done,
            "validated": self.validation.step,
            "snapshot": snapshot,
            "swap_epoch": self.swap_epoch,
            "restart_due": selection is not None and snapshot is not None,
            "label_errors": None if self.label_errors is None else self.label_errors.tensors(),
        }

    def _check_resumed(self, state: Mapping[str, Any]) -> None:
        before = {"repeat": 1} | state.get("settings", {})  # older ones have none, or not this one
        original = state.get("warmup")
        if original is not None and before.get("warmup_epochs") != self.settings.warmup_epochs:
            # Said in another way, as a fraction or a number of epochs.
            before["warmup_epochs"] = (
                original if original != self.warmup else self.settings.warmup_epochs
            )
        self.settings.check_resumed(before)
        if original not in (None, self.warmup):
            raise ValueError(
                f"a resumed fit must have the warm-up of the original fit, but DataPruning has `warmup_epochs`="
                f"{self.settings.warmup_epochs} of max_epochs={self.trainer.max_epochs}, which is {self.warmup} epochs, "
                f"where the checkpoint has {original}: give warmup_epochs={original}."
            )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues where `state_dict` was taken."""
        self._restored, self.knows_before = state, True
        self._check_resumed(state)
        if state["source"] is not None:
            self.source.load_state_dict(state["source"])
        self.recalls.load_state_dict(state["recalls"])
        self.decision.load_state_dict(state["decision"])
        if state.get("groups") is not None and self.decision.target is not None:
            self._use(Found.from_state_dict(state["groups"], self.decision.target))
        self._epochs_done = state["epochs_done"]
        self.first_epoch, self.first_step = state.get("first_epoch", 0), 0
        self.swap_epoch = state.get("swap_epoch", self.first_epoch + self.warmup)
        self.validation.step = state.get("validated", -1)  # older ones do not know
        errors = state.get("label_errors")  # older ones have none
        self.label_errors = None if errors is None else LabelErrors(**errors)
        if state["selection"] is None:
            return
        kept = self.source.kept
        if kept is None:
            raise ValueError(
                "the checkpoint has a selection but not its samples: it was written with "
                "FairPruneDataModule around the data, so resume with it."
            )
        if self.settings.quota is not None:
            self.source.classes = self.decision.target
        snapshot = self._start_of(state["snapshot"]) if state["restart_due"] else None
        selection = Selection(indices=kept, **state["selection"])
        self._swapped_at = -1
        # A tuner restores a state during the fit, whose warm-up is known.
        self.phase = Pruned(selection, self.warm_up, snapshot)
        self.source.carry_index = False
