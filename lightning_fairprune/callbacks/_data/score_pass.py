"""The scoring pass of a fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_fairprune._lightning.kinds import is_overridden, shards_weights
from lightning_fairprune._lightning.outside_fit import logits_of
from lightning_fairprune._loading.labels import is_label, labels_of
from lightning_fairprune._loading.rebuild import sampled_dataset
from lightning_fairprune._loading.source import TrainSource
from lightning_fairprune._observe.observer import logits_fn_of
from lightning_fairprune.callbacks._data.settings import DataSettings
from lightning_fairprune.scoring.file import PassFile
from lightning_fairprune.scoring.run import Passed, run
from lightning_fairprune.scoring.share import Share
from lightning_fairprune.scoring.wanted import Wanted


class FitPass:
    """The pass of one fit: checked before training starts, and run at the end of the warm-up."""

    def __init__(self, settings: DataSettings, trainer: pl.Trainer, source: TrainSource) -> None:
        module, logits_fn, way = (
            trainer.lightning_module,
            logits_fn_of(trainer),
            settings.score_pass,
        )
        assert settings.score is not None
        assert way is not None
        self._module, self._way, self._logits_fn = module, way, logits_fn
        self._bar = trainer.progress_bar_callback is not None
        whole_weights(
            "score_on", trainer, "use score_on='training', or score_pass() on a checkpoint"
        )
        self._wanted = Wanted.of(module, settings.score, way.layer, way.checkpoints)
        if self._wanted.kind != "model" and logits_fn is None:
            logits_of(module)  # raises if no step computes them
        if way.resume is not None:
            PassFile(way.resume, "0").check()
        self._loader = training_loader("score_on", way.dataloader, trainer, source)

    def run(self, target: Tensor) -> Passed:
        """Returns scores [N]; `target` holds the labels that training observed, -1 elsewhere."""
        passed = run(
            self._module,
            self._loader,
            self._wanted,
            logits_fn=self._logits_fn,
            resume=self._way.resume,
            progress=self._bar,
        )
        if passed.target is not None:
            check_same_labels("score_on", passed.target, target)
        if passed.score.isnan().all():
            raise ValueError(
                f"`score` is NaN for all {len(passed.score)} samples: check the model's outputs in eval mode "
                "after the warm-up; a diverged training is the usual cause."
            )
        return passed


def whole_weights(argument: str, trainer: pl.Trainer, remedy: str) -> None:
    """Raises if a pass cannot run outside the steps of a strategy."""
    if shards_weights(trainer.strategy):
        raise ValueError(
            f"`{argument}`: {type(trainer.strategy).__name__} shards the weights, so a pass cannot "
            f"run outside its steps: {remedy}."
        )


def training_loader(
    argument: str,
    dataloader: str | Callable[[], Any] | None,
    trainer: pl.Trainer,
    source: TrainSource,
) -> Any:
    """Returns the loader of a pass over the training samples; raises unless it has them in their order."""
    loader = _found(argument, dataloader, trainer, source)
    try:
        Share(loader)
    except (TypeError, ValueError) as error:
        raise type(error)(f"`{argument}`: {error}") from error
    dataset: Any = sampled_dataset(loader)
    if len(dataset) != source.num_samples:
        raise ValueError(
            f"`{argument}`: the loader has {len(dataset)} samples, the training set "
            f"{source.num_samples}: it must hold the same samples in the same order."
        )
    labels, known = labels_of(dataset), labels_of(source.dataset)
    if labels is None or known is None or torch.equal(labels, known):
        return loader
    # Both are guesses, so they must be what samples say before they count.
    if is_label(labels, dataset) and is_label(known, source.dataset):
        check_same_labels(argument, labels, known)
    return loader


def _found(
    argument: str, name: str | Callable[[], Any] | None, trainer: pl.Trainer, source: TrainSource
) -> Any:
    module = trainer.lightning_module
    if name is None:
        # A training step has its batches in the collection of loaders that trainer.fit() was given.
        return source.users_loader(in_form=not is_overridden("validation_step", module))
    if callable(name):
        return name()
    owners = [owner for owner in (trainer.datamodule, module) if owner is not None]  # type: ignore[attr-defined]
    for owner in owners:
        if callable(getattr(owner, name, None)):
            return getattr(owner, name)()
    raise ValueError(
        f"`{argument}`: dataloader={name!r} must be a method of "
        f"{' or '.join(type(owner).__name__ for owner in owners)} that returns a DataLoader."
    )


def check_same_labels(argument: str, labels: Tensor, known: Tensor) -> None:
    """Raises if the samples of a pass have other labels than those that training observed."""
    differs = (labels != known) & (labels >= 0) & (known >= 0)
    if differs.any():
        first = int(differs.nonzero()[0])
        raise ValueError(
            f"`{argument}`: the loader has other labels than the training set for {int(differs.sum())} "
            f"samples, first for sample {first} ({int(labels[first])}, not {int(known[first])}): it "
            "must hold the same samples in the same order."
        )
