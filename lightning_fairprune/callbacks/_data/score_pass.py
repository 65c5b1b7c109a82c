"""The scoring pass of a fit: over which samples, and when it is checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
from torch import Tensor

from lightning_fairprune._lightning.kinds import shards_weights
from lightning_fairprune._lightning.outside_fit import logits_of
from lightning_fairprune._loading.labels import labels_of
from lightning_fairprune._loading.rebuild import sampled_dataset
from lightning_fairprune.scoring.file import PassFile
from lightning_fairprune.scoring.run import Passed, run
from lightning_fairprune.scoring.share import Share
from lightning_fairprune.scoring.wanted import Wanted, kind_of

if TYPE_CHECKING:
    from lightning_fairprune._loading.source import TrainSource
    from lightning_fairprune.callbacks.data_pruning import DataPruning

__all__ = ["FitPass", "ScorePass"]


@dataclass(frozen=True)
class ScorePass:
    """How DataPruning computes scores in one pass at the end of the warm-up.

    See :func:`~lightning_fairprune.score_pass`.

    Args:
        dataloader: loader over the training samples without augmentation, in the order of the training set: the
            name of a method of the data module or the module, or a function that returns one; None takes the
            training loader, whose data set may augment.
        layer: name of the layer whose input are the features; None takes the last linear layer.
        checkpoints: weights of query models to average over, instead of those at the end of the warm-up.
        resume: file that keeps what is done, so that a fit that was stopped in the pass goes on there.

    Example:
        >>> ScorePass(dataloader="plain_dataloader").checkpoints
        ()
    """

    dataloader: str | Callable[[], Any] | None = None
    layer: str | None = None
    checkpoints: tuple[str, ...] = ()
    resume: str | None = None


class FitPass:
    """The pass of one fit. It is checked before training begins, and run when the warm-up is over."""

    def __init__(self, callback: DataPruning, trainer: pl.Trainer, source: TrainSource) -> None:
        module = trainer.lightning_module
        settings = callback.score_on
        assert isinstance(settings, ScorePass)
        assert callback.score is not None
        self._module, self._settings, self._logits_fn = module, settings, callback.logits_fn
        self._bar = trainer.progress_bar_callback is not None
        if shards_weights(trainer.strategy):
            raise ValueError(
                f"`score_on`: {type(trainer.strategy).__name__} shards the weights, so a pass cannot "
                "run outside its steps: use score_on='training', or score_pass() on a checkpoint."
            )
        self._wanted = Wanted.of(module, callback.score, settings.layer, settings.checkpoints)
        if self._wanted.kind != "model" and callback.logits_fn is None:
            logits_of(module)  # raises where no step would show them
        if settings.resume is not None:
            PassFile(settings.resume, "0").check()
        self._loader = self._find(trainer, source)
        self._check_samples(source)

    def _find(self, trainer: pl.Trainer, source: TrainSource) -> Any:
        name = self._settings.dataloader
        if name is None:
            return source.users_loader()
        if callable(name):
            return name()
        owners = [owner for owner in (trainer.datamodule, self._module) if owner is not None]  # type: ignore[attr-defined]
        for owner in owners:
            if callable(getattr(owner, name, None)):
                return getattr(owner, name)()
        raise ValueError(
            f"`score_on`: dataloader={name!r} must be a method of "
            f"{' or '.join(type(owner).__name__ for owner in owners)} that returns a DataLoader."
        )

    def _check_samples(self, source: TrainSource) -> None:
        try:
            Share(self._loader)
        except (TypeError, ValueError) as error:
            raise type(error)(f"`score_on`: {error}") from error
        dataset: Any = sampled_dataset(self._loader)
        if len(dataset) != source.num_samples:
            raise ValueError(
                f"`score_on`: the loader has {len(dataset)} samples, the training set "
                f"{source.num_samples}: it must hold the same samples in the same order."
            )
        labels, known = labels_of(dataset), labels_of(source.dataset)
        if labels is not None and known is not None:
            _check_same(labels, known)

    def run(self, target: Tensor) -> Passed:
        """Returns scores [N]; `target` are the labels that training saw, -1 where it saw none."""
        passed = run(
            self._module,
            self._loader,
            self._wanted,
            logits_fn=self._logits_fn,
            resume=self._settings.resume,
            progress=self._bar,
        )
        if passed.target is not None:
            _check_same(passed.target, target)
        if passed.score.isnan().all():
            raise ValueError(
                f"`score` is NaN for all {len(passed.score)} samples: look at what the model puts out in "
                "eval mode when the warm-up is over; a diverged training is the usual cause."
            )
        return passed


def _check_same(labels: Tensor, known: Tensor) -> None:
    differs = (labels != known) & (labels >= 0) & (known >= 0)
    if differs.any():
        first = int(differs.nonzero()[0])
        raise ValueError(
            f"`score_on`: the loader has other labels than the training set for {int(differs.sum())} "
            f"samples, first for sample {first} ({int(labels[first])}, not {int(known[first])}): it "
            "must hold the same samples in the same order."
        )


def check_way(score: Callable[..., Any] | None, score_on: object) -> None:
    """Raises a ValueError unless the score can be computed in the way that was asked for."""
    if score_on not in ("training", "pass") and not isinstance(score_on, ScorePass):
        raise ValueError(f"`score_on` must be 'training', 'pass' or a ScorePass, got {score_on!r}.")
    if score_on == "training" and score is not None and kind_of(score) != "dynamics":
        needs = "features" if kind_of(score) == "features" else "the model"
        raise ValueError(
            f"`score` {getattr(score, '__name__', repr(score))} is computed from {needs}, not from "
            "training dynamics: use score_on='pass'."
        )
    if score_on != "training" and score is None:
        raise ValueError(
            "`score_on` asks for a pass over the training data, but there is no `score` to compute: "
            "leave it out, or give a score and keep='hard', 'easy' or 'stratified'."
        )
