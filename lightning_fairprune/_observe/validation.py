"""Counts each validation of a Trainer once for all its callbacks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple
from weakref import WeakKeyDictionary

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_fairprune import recalls
from lightning_fairprune._lightning.kinds import lightning_class
from lightning_fairprune._model.losses import IGNORED
from lightning_fairprune._observe.combined import loaders_of, one_loader_a_batch
from lightning_fairprune._observe.groups import GroupBy, PlacedGroups, groups_of
from lightning_fairprune._observe.observer import StepObserver, capture_of
from lightning_fairprune._observe.positions import rows_of
from lightning_fairprune._observe.ranks import gather_over_ranks, max_over_ranks, sum_over_ranks
from lightning_fairprune.counts import ClassCounts, Tally, counts_of

MOST_KEPT = 1 << 28  # 1 GiB in single precision


class RecallWindow:
    """Pools the counts of the last `length` validations; `shrinkage` as of the callbacks.

    The validations are on the same samples, so three of them are not three times as many: with ``"auto"``
    the recall is their mean, but the support, which says how noisy it is, that of one validation.
    """

    def __init__(self, length: int, shrinkage: float | Literal["auto"]) -> None:
        self.length, self.shrinkage = length, shrinkage
        self._counts: list[ClassCounts] = []

    def __len__(self) -> int:
        return len(self._counts)

    def add(self, counts: ClassCounts) -> None:
        """Adds the counts of a validation."""
        self._counts = [*self._counts, counts][-self.length :]

    def support(self) -> Tensor:
        """Returns the samples of one validation behind each recall, int64 [K]."""
        most = max(counts.num_classes for counts in self._counts)
        return torch.stack([counts.padded(most).support for counts in self._counts]).amax(0)

    def recall(self) -> Tensor:
        """Returns the pooled recalls, float64 [K]; NaN for a class without a sample."""
        most = max(counts.num_classes for counts in self._counts)
        # A group may be missing in an earlier validation.
        counts = [counts.padded(most) for counts in self._counts]
        pooled = ClassCounts.pooled(counts)
        if self.shrinkage != "auto":
            return pooled.shrunk_recall(self.shrinkage)
        support = self.support()
        fitted = recalls.empirical_bayes(pooled.recall.nan_to_num() * support, support)
        return torch.where(support > 0, fitted, torch.nan)

    def state_dict(self) -> dict[str, Any]:
        """Returns CPU tensors."""
        return {"counts": [(counts.tp, counts.support) for counts in self._counts]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues where `state_dict` was taken."""
        self._counts = [ClassCounts(tp, support) for tp, support in state["counts"]]


class Kept(NamedTuple):
    """What this rank has kept of a validation: logits [n, C], target int64 [n], and groups [n] if there are any."""

    logits: Tensor
    target: Tensor
    group: Tensor | None


class _Running:
    """The running validation (or test) of a Trainer, for all callbacks."""

    def __init__(self, trainer: pl.Trainer) -> None:
        self._observer = StepObserver(trainer)
        self._average_is_told = False
        self._begin()

    def _begin(self) -> None:
        self._observer.abandon()
        self._started = self._is_open = False
        self._loaders: set[int] = set()
        self._groupings: list[GroupBy | PlacedGroups] = []
        self._answers = False
        self._tallies: dict[int, Tally] = {}
        self._found: dict[int, tuple[ClassCounts, ...]] | None = None
        # Logits, labels and groups of the loaders whose logits a callback wants.
        self._kept: dict[int, list[tuple[Tensor, ...]]] = {}
        self.batches: Counter[int] = Counter()
        self.where: tuple[torch.device, torch.dtype] | None = None

    def renew(self) -> None:
        """Resets before the first batch of the next validation."""
        if self._started:
            self._begin()

    def tell_average(self, trainer: pl.Trainer) -> None:
        """Warns once if the Trainer validates an average of weights that holds none of the training yet."""
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        for callback in callbacks:
            average = getattr(callback, "_average_model", None)
            validated = lightning_class(callback, "WeightAveraging") is not None
            if not validated or average is None or self._average_is_told:
                continue
            if trainer.global_step > 0 and int(average.n_averaged) == 0:
                self._average_is_told = True
                rank_zero_warn(
                    f"{type(callback).__name__} has not averaged any weights after {trainer.global_step} steps, and "
                    "validation is of the weights before the first step: recalls, and quotas from them, say nothing of "
                    "the model that is trained. Average from the first validation on, or prune later."
                )

    def want(
        self,
        loaders: range,
        group_by: GroupBy | PlacedGroups | None,
        *,
        answers: bool,
        logits: bool,
    ) -> None:
        """Adds what a callback wants, before the first batch: loaders, groups, which samples were right, logits."""
        self._loaders.update(loaders)
        self._answers |= answers
        if logits:
            self._kept |= {i: self._kept.get(i, []) for i in loaders}
        if group_by is not None and group_by not in self._groupings:
            self._groupings.append(group_by)

    def open(
        self,
        module: pl.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
        *,
        testing: bool,
    ) -> None:
        """Starts before a step; only the first call counts."""
        if dataloader_idx in self._loaders and not self._is_open:
            self._started = self._is_open = True
            self._observer.open(module, batch, batch_idx, (testing, dataloader_idx))

    def close(
        self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int, step: str
    ) -> None:
        """Counts after a step; only the first call counts."""
        if not self._is_open:
            return
        self._is_open = False
        logits, target, per_label, _ = self._observer.read(outputs, None, step)
        groups = [
            group_by.of(batch_idx, dataloader_idx, target)
            if isinstance(group_by, PlacedGroups)
            else groups_of(batch, group_by)
            for group_by in self._groupings
        ]
        known = [group for group in groups if group is not None]
        tally = self._tallies.setdefault(dataloader_idx, Tally(len(groups), IGNORED))
        if per_label:
            tally.update_labels(logits, target, *known)
        else:
            rows = rows_of(logits, target, *known)
            tally.update(*rows)
            if dataloader_idx in self._kept:
                self._keep(self._kept[dataloader_idx], rows)
        if per_label and dataloader_idx in self._kept:
            raise ValueError(
                "offsets are of one class a sample, but these samples have any number of labels, each with a threshold "
                "of its own: leave RecallOffsets out."
            )
        self.batches[dataloader_idx] += 1
        self.where = logits.device, logits.dtype

    @staticmethod
    def _keep(kept: list[tuple[Tensor, ...]], rows: tuple[Tensor, ...]) -> None:
        # Copies: a compiled step may use the same memory again for the next batch.
        kept.append(tuple(row.clone() for row in rows))
        if sum(logits.numel() for logits, *_ in kept) > MOST_KEPT:
            raise ValueError(
                f"the logits of a validation are kept in memory, at most {MOST_KEPT:,} numbers on a rank, and this "
                "validation has more: give `recall_dataloader` a smaller loader, or set limit_val_batches."
            )

    def kept(self, dataloader_idx: int, group_by: GroupBy | PlacedGroups | None) -> Kept | None:
        """Returns the logits of a loader with a class each, and forgets them; None on a rank without a batch."""
        rows = self._kept.pop(dataloader_idx, [])
        if not rows:
            return None
        logits, target, *groups = map(torch.cat, zip(*rows, strict=True))
        group = None if group_by is None else groups[self._groupings.index(group_by)]
        known = target != IGNORED
        return Kept(logits[known], target[known].long(), None if group is None else group[known])

    def name(self, dataloader_idx: int) -> str:
        """What the validation steps on a loader predict, in words."""
        return self._observer.name((False, dataloader_idx))

    def counts(
        self,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        group_by: GroupBy | PlacedGroups | None,
    ) -> dict[int, tuple[ClassCounts, ...]]:
        """Returns the counts of each loader by class and by group; all ranks must call this."""
        if self._found is None:
            self._started = True
            loaders = sorted(self._loaders)
            # A rank without a batch of a loader takes part in the sums.
            nothing = Tally(len(self._groupings))
            tallies = [self._tallies.get(i, nothing) for i in loaders]
            sums = sum_over_ranks(trainer), max_over_ranks(trainer), module.device
            gather = gather_over_ranks(trainer) if self._answers else None
            self._found = dict(zip(loaders, counts_of(tallies, *sums, gather), strict=True))
            self._tallies = {}
        rows = [0] if group_by is None else [0, 1 + self._groupings.index(group_by)]
        return {i: tuple(found[row] for row in rows) for i, found in self._found.items()}


_running: WeakKeyDictionary[pl.Trainer, _Running] = WeakKeyDictionary()


def abandon(trainer: pl.Trainer) -> None:
    """On an exception: leaves nothing behind in torch."""
    capture_of(trainer).leave()
    _running.pop(trainer, None)


class CountsValidation(pl.Callback):
    """A callback that counts each batch of a validation, as its `Validation` says."""

    def on_validation_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Starts observing."""
        running = _running.get(trainer)
        if running is not None:
            running.open(pl_module, batch, batch_idx, dataloader_idx, testing=trainer.testing)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Counts which predictions were right."""
        step = "test_step" if trainer.testing else "validation_step"
        running = _running.get(trainer)
        if running is not None:
            running.close(outputs, batch, batch_idx, dataloader_idx, step)


class Validation:
    """The counts that a callback wants of each validation, and whether a validation was whole.

    A checkpoint between the last batch of an epoch and the end of its validation (on an exception or a
    signal, or after every step) does not record the progress of the validation. The Trainer that resumes it
    runs only a part of it, or nothing.

    Args:
        dataloader_idx: the loader to count; None for all.
        group_by: groups to count besides the classes.
        answers: whether the counts shall say which samples were right.
        logits: whether to keep the logits of each validation until its end.
    """

    def __init__(
        self,
        dataloader_idx: int | None = None,
        group_by: GroupBy | None = None,
        *,
        answers: bool = False,
        logits: bool = False,
    ) -> None:
        self._loader, self._answers, self._logits = dataloader_idx, answers, logits
        self.group_by: GroupBy | PlacedGroups | None = group_by
        self.step = -1  # global step of the last whole validation
        self.wanted = False  # whether the last validation is counted
        self._resumed_in = -1
        self._is_first = False

    def resumed(self, epoch: int) -> None:
        """Notes at the start of training that the fit was resumed in `epoch`."""
        self._resumed_in, self._is_first = epoch, True

    def begin(self, trainer: pl.Trainer, *, wanted: bool = True) -> None:
        """Starts a new count before a validation, if it is wanted."""
        self.wanted = wanted
        if trainer in _running:
            _running[trainer].renew()
        if wanted:
            one_loader_a_batch(trainer)
            if trainer not in _running:
                _running[trainer] = _Running(trainer)
            if isinstance(self.group_by, PlacedGroups):
                self.group_by.begin(loaders_of(trainer), trainer.strategy.root_device)
            wants = {"answers": self._answers, "logits": self._logits}
            _running[trainer].want(self._loaders(trainer), self.group_by, **wants)
            _running[trainer].tell_average(trainer)

    def _loaders(self, trainer: pl.Trainer) -> range:
        batches = trainer.num_test_batches if trainer.testing else trainer.num_val_batches
        i = self._loader
        return range(len(batches)) if i is None else range(i, i + 1)

    def name(self, trainer: pl.Trainer) -> str:
        """What the one loader's steps predict, in words."""
        return _running[trainer].name(self._loader or 0)

    def where(self, trainer: pl.Trainer) -> tuple[torch.device, torch.dtype] | None:
        """Returns device and dtype of the logits; None on a rank without a batch."""
        return _running[trainer].where

    def counts(
        self, trainer: pl.Trainer, module: pl.LightningModule
    ) -> list[tuple[ClassCounts, ...]]:
        """Returns the counts by class and by group of each loader; all ranks must call this."""
        found = _running[trainer].counts(trainer, module, self.group_by)
        return [found[i] for i in self._loaders(trainer)]

    def kept(self, trainer: pl.Trainer) -> Kept | None:
        """Returns the logits that this rank has kept of the one loader; None without a batch."""
        return _running[trainer].kept(self._loader or 0, self.group_by)

    def finish(self, trainer: pl.Trainer, module: pl.LightningModule) -> ClassCounts | None:
        """Returns the counts of the one loader, by group if there are groups, after a validation in a fit.

        None if they are not wanted, of the sanity check and of a part of a validation.
        """
        if not self.wanted or trainer.sanity_checking or not self.is_whole(trainer):
            return None
        return self.counts(trainer, module)[0][-1]

    def is_whole(self, trainer: pl.Trainer) -> bool:
        """Whether the validation went over all batches; only the first of a resumed fit may not."""
        seen = _running[trainer].batches
        is_cut = self._is_first and any(
            seen[i] < batches < float("inf")
            for i, batches in enumerate(trainer.num_val_batches)
            if self._loader in (None, i)
        )
        self._is_first = False
        if not is_cut:
            self.step = trainer.global_step
        return not is_cut

    def lacks(self, trainer: pl.Trainer, epoch: int) -> bool:
        """Whether the validation of an epoch was lost by resuming in or after the epoch."""
        if epoch > self._resumed_in or self.step == trainer.global_step:
            return False
        every, batches = trainer.check_val_every_n_epoch, trainer.num_training_batches
        if every is None:
            batches = trainer.fit_loop.total_batch_idx + 1
        elif (epoch + 1) % every:
            return False
        # None: by the clock; infinite: at the end of a loader without a length.
        interval = trainer.val_check_batch
        if not trainer.enable_validation or interval is None:
            return False
        return interval == float("inf") or batches % interval == 0
