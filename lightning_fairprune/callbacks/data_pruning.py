"""The callback that prunes the training data inside one fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import lightning.pytorch as pl
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_fairprune import quotas
from lightning_fairprune._loading.source import TrainSource
from lightning_fairprune._loading.wrapper import Wrapper
from lightning_fairprune._observe.groups import GroupBy, LogitsFn
from lightning_fairprune._observe.validation import CountsValidation, abandon
from lightning_fairprune.callbacks._arguments import given, without_fit
from lightning_fairprune.callbacks._data import checks
from lightning_fairprune.callbacks._data.dry_run import dry_run as run_dry
from lightning_fairprune.callbacks._data.run import PruningRun
from lightning_fairprune.callbacks._data.settings import DataSettings, ScorePass
from lightning_fairprune.callbacks._run_folder import say_where
from lightning_fairprune.callbacks._training import OfTraining, forget_training, name_training
from lightning_fairprune.groups import Discovered
from lightning_fairprune.records.dynamics import Dynamics
from lightning_fairprune.records.label_errors import LabelErrors
from lightning_fairprune.records.pruning_record import PruningRecord
from lightning_fairprune.selection import Selection
from lightning_fairprune.selection.decision import Estimate

__all__ = ["DataPruning"]


class DataPruning(OfTraining, CountsValidation):
    """Warms up on all training data, then trains on a class-aware part of it.

    During the warm-up epochs the callback records the label of every training sample and, if a score
    needs them, its training dynamics; validation gives the recall of every class. After the last
    warm-up epoch it decides how many samples each class keeps (`quota`) and which (`keep`, `score`),
    and the Trainer continues with a loader over those. Model, data module and loss need no change.
    Works with :class:`~lightning_fairprune.FairPruneDataModule`, with any DataModule or LightningModule
    that has a ``train_dataloader``, and with a loader given to ``trainer.fit()``, also as the only one in a
    list, a dictionary or a CombinedLoader. Only what the Trainer trains on changes: hooks that call
    ``train_dataloader()`` or iterate ``trainer.train_dataloader`` see batches as you made them.

    Quotas say how many samples of a class are trained on in an epoch. A ``WeightedRandomSampler`` keeps its weights
    inside a class (without a quota, over all kept samples); a sampler of your own that repeats samples decides how
    often each kept one is drawn.

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
            example `quotas.drop` or `quotas.Minimax()`; None for no quotas: the score alone decides. One that
            asks for ``difficulty`` [K], such as `quotas.difficulty`, gets that of the score.
        keep: which samples of a class stay: ``"random"``, or by score the ``"hard"``, the ``"easy"``
            or ``"stratified"`` ones.
        cutoff: fraction of each class, the hardest by score, that ``"hard"`` and ``"stratified"`` never
            keep, in [0, 1), as wrong labels are often among them; less where the quota needs those samples.
        pool: fraction of each class, drawn at random for every draw, that ``"hard"``, ``"easy"`` or
            ``"stratified"`` choose from, in (0, 1].
        after: ``"continue"`` trains the same model; ``"restart"`` first restores weights, buffers,
            optimisers and schedules of the start of the fit, so that the final model is trained on
            the kept samples alone, as in the papers.
        resample_every: epochs between new draws under the same quotas; None keeps the first draw;
            ``"auto"`` is 1 with ``after="continue"`` and None with ``"restart"``, as in the papers.
        update_every: epochs between new estimates of the quotas, each with a draw; None keeps the
            first ones; ``"auto"`` is 2 with ``after="continue"`` and None with ``"restart"``.
        recall_window: number of latest validations whose class counts are pooled. At a high learning
            rate the recall of a class changes by tens of points between epochs.
        shrinkage: how far recalls are pulled to the mean, so that noise does not set the quotas. ``"auto"``
            leaves it to the counts of the validation, see :func:`~lightning_fairprune.recalls.empirical_bayes`:
            recalls that differ by no more than noise become equal, those that differ for certain stay.
            A number adds so many pseudo-samples at the mean recall to every class.
        floor: samples that every class keeps at least, or all of a smaller class (`repeat` times all of it); an
            argument of `quota`.
        repeat: how often an epoch may draw the same sample: a quota may be up to `repeat` times the size of its
            class, which then counts as that many samples, up to the largest class. So small classes can get their
            share of an epoch: 10 is good for long tails. An argument of `quota`.
        guard: whether a class with a low recall that does not answer to more samples is held at its proportional
            share, named in a warning and marked in `history`; for rules that take ``recall`` and ``cap``.
        recall_dataloader: index of the validation loader that the recalls come from.
        group_by: groups instead of classes in quotas and recalls: the key or position of the group
            ids in a batch, or a function from the batch to them, int [B] in [0, G). Where groups have no labels:
            :class:`~lightning_fairprune.groups.Discovered`, which finds them at the end of the warm-up.
        logits_fn: ``(module, batch) -> (logits, target)``, for all callbacks of the Trainer, where steps do not
            show one prediction (see the guide); costs one forward pass a batch.
        seed: of every draw and of the order of samples.
        score_on: what the score is computed from: ``"training"``, the steps of the warm-up;
            ``"pass"``, a pass over all samples at the end of the warm-up, in eval mode; or a
            :class:`~lightning_fairprune.ScorePass`, which names a loader without augmentation or
            checkpoints of query models.
        dry_run: print what would be kept and what it would cost, then stop before training: True
            for equal recalls, or the recalls to assume.

    Attributes:
        selection: the samples in use, a :class:`~lightning_fairprune.Selection`; None in warm-up.
        quota: samples kept per class, int64 [K]; None in warm-up or without quotas.
        dynamics: what the warm-up recorded, or the pass; None in a fit that was resumed after it.
        history: ``(epoch, recall, quota, held)`` of every estimate of the quotas.
        record: selection and history with labels, scores and settings, a
            :class:`~lightning_fairprune.PruningRecord`, also saved in the folder of the logger as
            ``fairprune/pruning.safetensors`` and ``pruning.json``.

    Raises:
        ValueError: If an argument is out of range; at fit start, if model, data or Trainer settings
            do not work with pruning.
        TypeError: At fit start, if the training samples cannot be selected by index.

    Example:
        >>> DataPruning(density=0.3, warmup_epochs=10).settings.keep
        'random'
    """

    def __init__(
        self,
        density: float,
        warmup_epochs: int | float,
        *,
        score: Callable[[Dynamics], Any] | None = None,
        quota: Callable[..., Any] | None = quotas.drop,
        keep: Literal["random", "hard", "easy", "stratified"] = "random",
        cutoff: float = 0.0,
        pool: float = 1.0,
        after: Literal["continue", "restart"] = "continue",
        resample_every: int | Literal["auto"] | None = "auto",
        update_every: int | Literal["auto"] | None = "auto",
        recall_window: int = 3,
        shrinkage: float | Literal["auto"] = "auto",
        floor: int = 0,
        repeat: int = 1,
        guard: bool = False,
        recall_dataloader: int = 0,
        group_by: Discovered | GroupBy | None = None,
        logits_fn: LogitsFn | None = None,
        seed: int = 0,
        score_on: Literal["training", "pass"] | ScorePass = "training",
        dry_run: bool | list[float] = False,
    ) -> None:
        self.settings = DataSettings(**given(locals()))
        self._run: PruningRun | None = None
        self._resumes = (
            False  # what a checkpoint holds is of a fit; the other stages restore it, too
        )
        self._undo: list[Callable[[], Any]] = []

    def __getstate__(self) -> dict[str, Any]:
        """Pickles settings and results, without Trainer, model and data."""
        return without_fit(self, _undo=[], _resumes=False)

    # ------------------------------------------------------------------------------------ results

    @property
    def run(self) -> PruningRun:
        """The current fit, or the last one."""
        if self._run is None:
            raise RuntimeError("DataPruning has no data before trainer.fit() sets it up.")
        return self._run

    @property
    def selection(self) -> Selection | None:
        """The samples in use; None in the warm-up."""
        return None if self._run is None else self._run.selection

    @property
    def pruned(self) -> bool:
        """Whether samples have been selected."""
        return self.selection is not None

    @property
    def quota(self) -> Tensor | None:
        """Samples kept per class, int64 [K]."""
        return None if self._run is None else self._run.decision.quota

    @property
    def history(self) -> list[Estimate]:
        """Every estimate of the quotas."""
        return [] if self._run is None else self._run.decision.history

    @property
    def dynamics(self) -> Dynamics | None:
        """What the warm-up recorded, or the pass."""
        warm_up = None if self._run is None else self._run.warm_up
        return None if warm_up is None else warm_up.dynamics

    @property
    def label_errors(self) -> LabelErrors | None:
        """The estimate of wrong labels after a warm-up of four epochs or more with `Minimax`, else None."""
        return None if self._run is None else self._run.label_errors

    @property
    def record(self) -> PruningRecord | None:
        """Selection, labels, scores and estimates."""
        return None if self._run is None else self._run.record

    # ---------------------------------------------------------------------------- start and end

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Checks what can be checked before any work, and takes over the training loader."""
        self._resumes = stage == "fit"
        if not self._resumes:
            return
        forget_training(trainer)
        self._unpatch()
        self._run = None
        checks.alone(self, trainer)
        settings = self.settings
        checks.trainer(settings, trainer, pl_module)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(data, Wrapper):
            source = data.source
            source.reset()
        else:
            source = TrainSource(trainer.fit_loop._data_source.dataloader)
            self._undo.append(source.serve(trainer))
        source.trainer, source.seed = trainer, settings.seed
        source.on_load = lambda loader: self._on_load(trainer, loader)
        source.carry_index = True
        self._undo += [source.detach, source.strip_indices(trainer), source.show_all(trainer)]
        self._run = PruningRun(settings, trainer, source)

    def _on_load(self, trainer: pl.Trainer, loader: DataLoader[Any]) -> None:
        # A tuner (batch size, learning rate) takes a few steps with callbacks of its own.
        if self in trainer.callbacks:  # type: ignore[attr-defined]
            run = self.run
            budget = run.decision.budget(run.source.num_samples)
            warmup = range(run.first_epoch, run.first_epoch + run.warmup)
            checks.loader(self.settings.density, budget, warmup, run.first_step, run.source)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Runs the dry run, if there is one."""
        if self.settings.dry_run:
            self.run.source.train_dataloader()
            run_dry(self.run, trainer)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts the warm-up, or continues where a checkpoint was taken."""
        name_training(trainer)
        self.run.start(pl_module)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves the record in the folder of the logger, for `fairprune report`; warns if nothing was pruned."""
        self.run.end()
        say_where(trainer, "DataPruning", "selection", "quota", "history")

    def on_exception(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        """Stops observing and restores the user's objects."""
        abandon(trainer)
        if self._run is not None and self._run.warming_up is not None:
            self._run.warming_up.observed.abandon()
        self._unpatch()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Restores the user's objects."""
        if stage == "fit":
            self._unpatch()

    def _unpatch(self) -> None:
        while self._undo:
            self._undo.pop()()

    # --------------------------------------------------------------------------------- training

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restarts the model after the swap, if it is due."""
        # The Trainer leaves this hook out where it resumes inside an epoch.
        self.run.knows_before = True
        self.run.source.after_reload()
        self.run.restart(pl_module)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Starts observing the step."""
        checks.begins_in_epoch(trainer, batch_idx, knows_before=self.run.knows_before)
        if self.run.warming_up is not None:
            self.run.remember(pl_module)
            self.run.warming_up.observed.before_step(pl_module, batch)

    def on_before_backward(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor
    ) -> None:
        """Stops observing once the loss is computed."""
        if self.run.warming_up is not None:
            self.run.warming_up.observed.before_backward(pl_module, loss)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Records labels and signals of the step."""
        if self.run.warming_up is not None:
            self.run.warming_up.observed.after_step(pl_module, outputs, batch)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Closes the epoch's record; updates quotas and samples if that is due."""
        self.run.end_epoch(trainer.current_epoch)

    # ------------------------------------------------------------------------------- validation

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts a new count."""
        if self._run is not None:
            wanted = trainer.state.fn == "fit" and self._run.needs_recall
            if wanted:  # its loaders may be new
                checks.validation(self.settings, trainer)
            self._run.validation.begin(trainer, wanted=wanted)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Adds the count to the window, except after the sanity check."""
        counts = None if self._run is None else self._run.validation.finish(trainer, pl_module)
        if counts is not None:
            self.run.add_recalls(counts)

    # ---------------------------------------------------------------------------------- resuming

    def state_dict(self) -> dict[str, Any]:
        """Returns CPU tensors and primitives; all ranks must call it, as the Trainer does."""
        return {} if self._run is None or not self._run.is_attached else self._run.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues where `state_dict` was taken."""
        if state_dict and self._resumes:
            self.run.load_state_dict(state_dict)
