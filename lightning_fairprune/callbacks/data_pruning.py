"""The callback that prunes the training data inside one fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_fairprune import quotas
from lightning_fairprune._lightning.snapshot import Snapshot
from lightning_fairprune._loading.source import TrainSource
from lightning_fairprune._loading.wrapper import Wrapper
from lightning_fairprune._observe.groups import GroupBy, LogitsFn
from lightning_fairprune._observe.ranks import check_same_on_all_ranks
from lightning_fairprune._observe.validation import (
    CountsValidation,
    RecallWindow,
    Validation,
    abandon,
)
from lightning_fairprune.callbacks._data import checks
from lightning_fairprune.callbacks._data.decision import Decision
from lightning_fairprune.callbacks._data.dry_run import dry_run as run_dry
from lightning_fairprune.callbacks._data.length import resolve_warmup
from lightning_fairprune.callbacks._data.score_pass import FitPass, ScorePass, check_way
from lightning_fairprune.callbacks._data.settings import check_resumed, settings_of
from lightning_fairprune.callbacks._data.warmup import WarmUp
from lightning_fairprune.callbacks._run_folder import run_folder
from lightning_fairprune.records.dynamics import Dynamics
from lightning_fairprune.records.pruning_record import Estimate, PruningRecord
from lightning_fairprune.selection import Selection

__all__ = ["DataPruning"]


class DataPruning(CountsValidation):
    """Warms up on all training data, then trains on a class-aware part of it.

    During the warm-up epochs the callback learns the label of every training sample and, where a
    score needs them, its training dynamics; from validation it learns the recall of every class.
    After the last warm-up epoch it decides how many samples each class keeps (`quota`) and which
    (`keep`, `score`), and the Trainer goes on with a loader over those. Model, data module and loss
    stay as they are. Works with :class:`~lightning_fairprune.FairPruneDataModule` and, without it,
    with any DataModule or LightningModule that has a ``train_dataloader``.

    The recalls that set the quotas come from the validation data. Report final numbers on other
    data: a test set, or a second validation loader (see `recall_dataloader`).

    Args:
        density: fraction of the training samples to keep, in (0, 1].
        warmup_epochs: epochs on all the data, at least 1; a float in (0, 1) is a fraction of
            ``max_epochs``, rounded.
        score: how hard each sample is, ``Dynamics -> [N]``: a function of
            :mod:`lightning_fairprune.scores` or your own. Only the signals that it reads are recorded.
            With a pass also one of :mod:`~lightning_fairprune.gradients` or
            :mod:`~lightning_fairprune.geometry`.
        quota: ``(sizes, recall, budget) -> int64 [K]`` or ``(sizes, budget) -> int64 [K]``, for
            example `quotas.drop` or `quotas.Minimax()`; None for no quotas, classes then fall as the
            score has it.
        keep: which samples of a class stay: ``"random"``, or by score the ``"hard"``, the ``"easy"``
            or ``"stratified"`` ones.
        after: ``"continue"`` trains on; ``"restart"`` first puts weights, buffers, optimisers and
            schedules back to where the fit began, so that the final model is trained on the kept
            samples alone, as in the papers.
        resample_every: draw a fresh subset under the same quotas every so many epochs; None keeps
            the first one; ``"auto"`` is 1 with ``after="continue"`` and None with ``"restart"``, whose
            young model's recalls and data the papers leave alone.
        update_every: estimate the quotas anew every so many epochs (and draw under them); None keeps
            the first ones; ``"auto"`` is 2 or None likewise.
        recall_window: average the class counts of so many latest validations. Between epochs the
            recall of a class swings by tens of points while the learning rate is high.
        shrinkage: pseudo-samples at the mean recall that are added to every class, so that a class
            with few validation samples does not get its quota from noise, nor a class without an
            error no sample at all.
        floor: samples that every class keeps at least, or all it has; passed on to `quota`.
        recall_dataloader: which validation loader the recalls come from.
        group_by: groups instead of classes in quotas and recalls: the key or position of the group
            ids in a batch, or a function from the batch to them, int [B] in [0, G).
        logits_fn: ``(module, batch) -> (logits, target)`` for steps that neither return ``"logits"``
            and ``"target"`` nor call ``cross_entropy``; costs one forward pass a recorded batch.
        seed: of every draw and of the order of samples.
        score_on: what the score sees: ``"training"``, the steps of the warm-up as they happen;
            ``"pass"``, every sample once more when the warm-up is over, in eval mode; or a
            :class:`~lightning_fairprune.ScorePass`, which names a loader without augmentation or
            checkpoints of query models.
        dry_run: print what would be kept and what it would cost, then stop before training: True
            for equal recalls, or the recalls to assume.

    Attributes:
        selection: the samples in use, a :class:`~lightning_fairprune.Selection`; None in warm-up.
        quota: samples kept per class, int64 [K]; None in warm-up or without quotas.
        dynamics: what the warm-up recorded, or the pass; None in a fit that was resumed after it.
        history: one record ``(epoch, recall, quota)`` for each time that quotas were estimated.
        record: all of it with labels, scores and settings, a
            :class:`~lightning_fairprune.PruningRecord`; the folder of the logger gets it as
            ``fairprune/pruning.safetensors`` and ``pruning.json``.

    Raises:
        ValueError: If an argument is out of range; at fit start, if model, data or Trainer settings
            cannot work with pruning.
        TypeError: At fit start, if the training data has no samples that can be picked by index.

    Example:
        >>> DataPruning(density=0.3, warmup_epochs=10).keep
        'random'
    """

    def __init__(
        self,
        density: float,
        warmup_epochs: int | float,
        score: Callable[[Dynamics], Any] | None = None,
        quota: Callable[..., Any] | None = quotas.drop,
        keep: Literal["random", "hard", "easy", "stratified"] = "random",
        after: Literal["continue", "restart"] = "continue",
        resample_every: int | Literal["auto"] | None = "auto",
        update_every: int | Literal["auto"] | None = "auto",
        recall_window: int = 3,
        shrinkage: float = 10.0,
        floor: int = 0,
        recall_dataloader: int = 0,
        group_by: GroupBy | None = None,
        logits_fn: LogitsFn | None = None,
        seed: int = 0,
        score_on: Literal["training", "pass"] | ScorePass = "training",
        dry_run: bool | list[float] = False,
    ) -> None:
        stays = after == "restart"
        if resample_every == "auto":
            resample_every = None if stays else 1
        if update_every == "auto":
            # Quotas that answer every epoch overshoot: the recalls have not had time to answer back.
            update_every = None if stays else 2
        self.resample_every, self.update_every = resample_every, update_every
        checks.arguments(
            density=density,
            warmup_epochs=warmup_epochs,
            score=score,
            quota=quota,
            keep=keep,
            after=after,
            resample_every=self.resample_every,
            update_every=self.update_every,
            recall_window=recall_window,
            shrinkage=shrinkage,
            floor=floor,
            recall_dataloader=recall_dataloader,
            seed=seed,
        )
        check_way(score, score_on)
        self.score_on = ScorePass() if score_on == "pass" else score_on
        # Numbers of numpy would end up in checkpoints, which then do not load.
        self.density = float(density)
        self.warmup_epochs = warmup_epochs
        self.score = score
        self.quota_fn = quota
        self.keep = keep
        self.after = after
        self.recall_window = recall_window
        self.shrinkage = shrinkage
        self.floor = floor
        self.recall_dataloader = recall_dataloader
        self.group_by = group_by
        self.logits_fn = logits_fn
        self.seed = int(seed)
        self.dry_run = dry_run
        self._undo: list[Callable[[], Any]] = []
        self._forget()

    def _forget(self) -> None:
        self.selection: Selection | None = None
        self.warmup = 0
        self.stepping_batches_planned = False
        self._source: TrainSource | None = None
        self._record: WarmUp | None = None
        self._snapshot: Snapshot | None = None
        self._restart_due = False
        self._restored: Mapping[str, Any] | None = None
        self._epochs_done = 0
        self._validation = Validation(self.recall_dataloader, self.group_by, self.logits_fn)
        self.decision = Decision(
            self.density, self.quota_fn, self.keep, self.seed, floor=self.floor
        )
        self._recalls = RecallWindow(self.recall_window, self.shrinkage)

    # ---------------------------------------------------------------------------------- set up

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Checks what can be checked before any work, and takes over the training loader."""
        if stage != "fit":
            return
        self._unpatch()
        self._forget()
        checks.trainer(self, trainer, pl_module)
        self.warmup = resolve_warmup(self.warmup_epochs, trainer)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(data, Wrapper):
            source = data.source
            source.reset()
        else:
            owner = pl_module if data is None else data
            source = TrainSource(owner.train_dataloader)
            self._undo.append(source.patch(owner))
        source.trainer, source.seed = trainer, self.seed
        source.on_load = lambda loader: self._on_load(trainer, loader)
        source.carry_index = True
        self._source = source
        self._undo += [source.detach, source.strip_indices(trainer)]

    def _on_load(self, trainer: pl.Trainer, loader: DataLoader[Any]) -> None:
        """Looks at every training loader before the Trainer does."""
        # A tuner (batch size, learning rate) takes a few steps with callbacks of its own.
        if self in trainer.callbacks:  # type: ignore[attr-defined]
            checks.loader(self, trainer, self.source)

    @property
    def source(self) -> TrainSource:
        """Where training samples come from during a fit."""
        if self._source is None:
            raise RuntimeError("DataPruning has no data before trainer.fit() sets it up.")
        return self._source

    @property
    def pruned(self) -> bool:
        """Whether the decision has been taken."""
        return self.selection is not None

    @property
    def quota(self) -> Tensor | None:
        """Samples kept per class, int64 [K]."""
        return self.decision.quota

    @property
    def history(self) -> list[Estimate]:
        """Every estimate of the quotas."""
        return self.decision.history

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prints the dry run and stops there, if asked to."""
        if self.dry_run:
            self.source.train_dataloader()
            run_dry(self, trainer)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Makes room for what will be observed, and decides now what a checkpoint left undecided."""
        checks.validation(self, trainer)
        checks.stepping(self, trainer)
        if not self.pruned:
            in_training = self.score_on == "training"
            self._record = WarmUp(
                trainer,
                self.source,
                self.warmup,
                score=self.score,
                in_pass=None if in_training else FitPass(self, trainer, self.source),
                group_by=self.group_by,
                logits_fn=self.logits_fn,
            )
            if self._restored is not None and self._restored["record"] is not None:
                self._record.load_state_dict(self._restored["record"])
            if self.after == "restart" and self._snapshot is None:
                self._snapshot = Snapshot.take(trainer, pl_module)
        if self._restored is not None:
            self._validation.resumed(trainer.current_epoch)
        self._catch_up(trainer)

    def _catch_up(self, trainer: pl.Trainer) -> None:
        """Does what the end of an epoch would have done that a checkpoint cut off.

        A checkpoint of an epoch's very last batch is resumed with the next epoch: the Trainer runs
        neither the validation nor the end of the old one. Nor does it repeat an end that failed.
        """
        epoch = trainer.current_epoch - 1
        if epoch < self._epochs_done:
            return
        self._finish_epoch(trainer, epoch)
        if self.pruned:
            self.source.request_reload(at_once=True)

    # --------------------------------------------------------------------------- warm-up epochs

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restarts the model where the swap asked for it."""
        if self._restart_due:
            # Not at the swap itself: the Trainer steps epoch-wise schedules after that.
            assert self._snapshot is not None
            self._snapshot.restore(trainer, pl_module)
            self._snapshot, self._restart_due = None, False

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Starts looking."""
        checks.begins_in_epoch(trainer, batch_idx)
        if self._record is not None and not self.pruned:
            self._record.open(pl_module, batch)

    def on_before_backward(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor
    ) -> None:
        """Stops looking as soon as the loss is known."""
        if self._record is not None and not self.pruned:
            self._record.look(pl_module, loss)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Notes what the step saw of each sample."""
        if self._record is not None and not self.pruned:
            self._record.note(pl_module, outputs, batch)

    # ------------------------------------------------------------------------------- validation

    @property
    def _needs_recall(self) -> bool:
        return self.decision.needs_recall and (not self.pruned or self.update_every is not None)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts a new count."""
        in_fit = trainer.state.fn == "fit"
        self._validation.begin(trainer, wanted=in_fit and self._needs_recall)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Adds the count to the window, unless it was the sanity check."""
        counts = self._validation.finish(trainer, pl_module)
        if counts is not None:
            self._recalls.add(counts)

    # ------------------------------------------------------------------------------ the decision

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Closes the epoch's record; decides, draws or estimates anew where that is due."""
        self._finish_epoch(trainer, trainer.current_epoch)

    def _finish_epoch(self, trainer: pl.Trainer, epoch: int) -> None:
        if self._needs_recall and self._validation.lacks(trainer, epoch):
            rank_zero_warn(
                f"the checkpoint was taken on the last batch of epoch {epoch}, before the end of its "
                "validation, so its recalls are missing: quotas use the recalls before it. "
                "Checkpoints at the end of an epoch resume exactly."
            )
        before, is_first = self.decision.state_dict(), not self.pruned
        try:
            decided = self._warm_up_is_over(epoch) if is_first else self._is_due(epoch)
            if any(decided):
                self._decide(trainer, epoch, estimate=decided[0])
        except BaseException:
            # A checkpoint on exceptions holds all of the decision or nothing; resuming it decides anew.
            self.decision.load_state_dict(before)
            raise
        self._epochs_done = epoch + 1
        if is_first and self.selection is not None:
            self._restart_due = self._snapshot is not None
            self._report(epoch, self.selection)
            self._save(trainer)

    def _warm_up_is_over(self, epoch: int) -> tuple[bool, bool]:
        """Closes an epoch of the warm-up; returns whether to estimate quotas and draw under them."""
        assert self._record is not None
        self._record.finish_epoch(epoch)
        over = epoch + 1 >= self.warmup and not self._recalls_are_late(epoch + 1)
        if over:
            self._record.close(self.decision)
            self.source.carry_index = False
        return over, over

    def _is_due(self, epoch: int) -> tuple[bool, bool]:
        """Returns whether a later epoch estimates quotas anew, and whether it draws."""
        since = epoch + 1 - self.warmup
        estimate = self.update_every is not None and since % self.update_every == 0
        return estimate, self.resample_every is not None and since % self.resample_every == 0

    def _recalls_are_late(self, done: int) -> bool:
        late = self.decision.needs_recall and not len(self._recalls)
        if late:
            rank_zero_warn(
                f"no validation has finished in {done} epochs, so there are no recalls "
                "to set quotas by: the warm-up goes on for one more epoch."
            )
        return late

    def _decide(self, trainer: pl.Trainer, epoch: int, *, estimate: bool) -> None:
        if estimate:
            recall = self._recalls.recall() if self.decision.needs_recall else None
            self.decision.estimate(epoch, recall)
        before, drawn = self.selection, self.decision.draw()
        check_same_on_all_ranks(trainer, drawn.indices)
        self.selection = drawn
        if before is None or not torch.equal(before.indices, drawn.indices):
            self.source.keep(drawn.indices)

    def _report(self, epoch: int, selection: Selection) -> None:
        kept = selection.quota
        few, many = int(kept.argmin()), int(kept.argmax())
        rank_zero_info(
            f"DataPruning: after epoch {epoch} training goes on with {len(selection)} of "
            f"{selection.num_samples} samples; class {few} keeps fewest ({int(kept[few])} of "
            f"{int(selection.sizes[few])}), class {many} most ({int(kept[many])} of "
            f"{int(selection.sizes[many])})."
        )

    @property
    def dynamics(self) -> Dynamics | None:
        """What the warm-up recorded, or the pass."""
        return None if self._record is None else self._record.dynamics

    @property
    def record(self) -> PruningRecord | None:
        """What was done so far and why."""
        if self.selection is None:
            return None
        target, scores = self.decision.target, self.decision.scores
        assert target is not None
        history, settings = tuple(self.history), settings_of(self)
        return PruningRecord(self.selection, target, scores, history, settings)

    @rank_zero_only
    def _save(self, trainer: pl.Trainer) -> None:
        folder, record = run_folder(trainer), self.record
        if folder is not None and record is not None:
            record.save(folder)

    # ----------------------------------------------------------------------------------- the end

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leaves a record in the folder of the logger, for `fairprune report`."""
        self._save(trainer)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Leaves nothing behind in torch or in the user's objects."""
        abandon(trainer)
        self._unpatch()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Gives the user's objects back as they were."""
        if stage == "fit":
            self._unpatch()

    def _unpatch(self) -> None:
        while self._undo:
            self._undo.pop()()

    # ---------------------------------------------------------------------------------- resuming

    def state_dict(self) -> dict[str, Any]:
        """Returns everything that a resumed fit needs, as CPU tensors and primitives.

        Inside an epoch the ranks add up what they have observed so far, so all must call it; the
        Trainer does.
        """
        if self._source is None or self._source.trainer is None:
            return {}
        trainer = self._source.trainer
        in_data = isinstance(trainer.datamodule, Wrapper)  # type: ignore[attr-defined]
        record, selection = self._record, self.selection
        if self.pruned:
            record = None  # has served; labels and scores are the decision's now
        return {
            "settings": settings_of(self),
            "source": None if in_data else self._source.state_dict(),
            "record": None if record is None else record.state_dict(),
            "recalls": self._recalls.state_dict(),
            "decision": self.decision.state_dict(),
            "selection": None if selection is None else _without_indices(selection),
            "epochs_done": self._epochs_done,
            "validated": self._validation.step,
            "snapshot": None if self._snapshot is None else self._snapshot.state_dict(),
            "restart_due": self._restart_due,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues where `state_dict` was taken."""
        if not state_dict:
            return
        state = self._restored = state_dict
        check_resumed(self, state.get("settings", {}))  # older ones have none
        if state["source"] is not None:
            self.source.load_state_dict(state["source"])
        self._recalls.load_state_dict(state["recalls"])
        self.decision.load_state_dict(state["decision"])
        self._epochs_done = state["epochs_done"]
        self._validation.step = state.get("validated", -1)  # older ones do not know
        if state["snapshot"] is not None:
            self._snapshot = Snapshot.from_state_dict(state["snapshot"])
        self._restart_due = state["restart_due"]
        if state["selection"] is not None:
            kept = self.source.kept
            if kept is None:
                raise ValueError(
                    "the checkpoint has a selection but not its samples: it was written with "
                    "FairPruneDataModule around the data, so resume with it."
                )
            self.selection = Selection(indices=kept, **state["selection"])
            self.source.carry_index = False


def _without_indices(selection: Selection) -> dict[str, Any]:
    names = ("num_samples", "quota", "sizes", "keep", "seed")
    return {name: getattr(selection, name) for name in names}
