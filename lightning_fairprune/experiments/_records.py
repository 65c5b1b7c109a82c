"""An experiment as frozen records, which jsonargparse reads from YAML."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import lightning.pytorch as pl

from lightning_fairprune import geometry, quotas
from lightning_fairprune.callbacks import ClassWeighting, DataPruning
from lightning_fairprune.callbacks._observe import GroupBy

__all__ = ["Baseline", "Experiment", "Final", "Hardware", "Method", "OneFit", "Query"]

Keep = Literal["random", "hard", "easy", "stratified"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


@dataclass(frozen=True, slots=True)
class Query:
    """The models that tell which classes are hard and which samples.

    Args:
        epochs: of each query model, over all the data.
        models: how many of them are trained for each seed; recalls and scores are averaged over them.
        early: when the scores of methods with ``at: early`` are taken, a fraction of `epochs` in (0, 1].
        shrinkage: pseudo-samples at the mean recall that are added to every class; 0 as published.

    Example:
        >>> Query(epochs=160).early_epoch
        16
    """

    epochs: int
    models: int = 1
    early: float = 0.1
    shrinkage: float = 0.0

    def __post_init__(self) -> None:
        for name in ("epochs", "models"):
            if getattr(self, name) < 1:
                raise ValueError(f"`query.{name}` must be at least 1, got {getattr(self, name)}.")
        if not 0 < self.early <= 1:
            raise ValueError(f"`query.early` must be in (0, 1], got {self.early}.")
        if not self.shrinkage >= 0:
            raise ValueError(f"`query.shrinkage` must be 0 or more samples, got {self.shrinkage}.")

    @property
    def early_epoch(self) -> int:
        """Epochs that are done when early scores are taken, at least 1."""
        return max(1, round(self.early * self.epochs))


@dataclass(frozen=True, slots=True)
class Final:
    """How long the models are trained that are compared.

    Args:
        epochs: of a model on all the data.
        length: of a model on part of it. ``"equal_samples"``: until it has seen as many samples;
            ``"epoch_correction"``: for ``int((0.5 + 0.5 d) epochs / d)`` epochs at density d, as the
            published code of DRoP has it, which is between half as many samples and as many.

    Example:
        >>> Final(epochs=160).length
        'equal_samples'
    """

    epochs: int
    length: Literal["equal_samples", "epoch_correction"] = "equal_samples"

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"`final.epochs` must be at least 1, got {self.epochs}.")


@dataclass(frozen=True, slots=True)
class Method:
    """A way to choose the samples for a final model, from what the query models saw.

    Args:
        score: how hard each sample is, higher = harder: a function of
            :mod:`lightning_fairprune.scores`, :mod:`~lightning_fairprune.gradients` or
            :mod:`~lightning_fairprune.geometry`, or your own; None with ``keep: random``.
        keep: which samples of a class stay.
        quota: samples per class, ``(sizes, recall, budget)`` or ``(sizes, budget) -> int64 [K]``;
            None for no quotas. :func:`~lightning_fairprune.quotas.of_subset` takes as many of each class
            as `score` and `keep` would without quotas, but at random: StrategyQ of the DRoP paper.
        score_on: ``"training"``: the score reads what the query models' training steps saw;
            ``"pass"``: one pass over the training set in eval mode, without augmentation.
        at: whether the score is taken early in the query model's training or at its end.

    Example:
        >>> from lightning_fairprune import quotas
        >>> Method(quota=quotas.drop).keep
        'random'
    """

    score: Callable[..., Any] | None = None
    keep: Keep = "random"
    quota: Callable[..., Any] | None = None
    score_on: Literal["training", "pass"] = "training"
    at: Literal["early", "end"] = "end"

    def __post_init__(self) -> None:
        if (self.score is None) != (self.keep == "random"):
            raise ValueError(
                "a method has a `score` and keep: hard, easy or stratified, or neither, got score: "
                f"{'null' if self.score is None else score_name(self.score)} and keep: {self.keep}."
            )
        if self.quota is quotas.of_subset and self.score is None:
            raise ValueError(
                "quota: of_subset needs the `score` whose own subset tells how many samples of each class "
                "are kept, got score: null: give one with keep: hard, or take quotas.proportional."
            )

    @property
    def models_of_score(self) -> int | None:
        """From how many query models the score is taken; None for all, whose mean it is then.

        The order of k-center has no mean, and the paper takes it from one model.
        """
        return 1 if self.score in (geometry.k_center_distance, geometry.class_k_center) else None


@dataclass(frozen=True, slots=True)
class OneFit:
    """Pruning inside the one fit of the final model, without a query model.

    Args:
        warmup: fraction of the samples seen that go to the warm-up on all the data, rounded down to
            whole epochs, at least one.
        prune: :class:`~lightning_fairprune.DataPruning` with any of its arguments but density,
            warmup_epochs and seed.

    Example:
        >>> OneFit(warmup=0.25).prune(0.3, 2).warmup_epochs
        2
    """

    warmup: float = 0.375
    prune: Callable[[float, int], DataPruning] = DataPruning

    def __post_init__(self) -> None:
        if not 0 < self.warmup < 1:
            raise ValueError(f"`warmup` of one_fit must be in (0, 1), got {self.warmup}.")


@dataclass(frozen=True, slots=True)
class Baseline:
    """A model that is trained on all the data.

    Args:
        weighting: :class:`~lightning_fairprune.ClassWeighting`; None for plain training.

    Example:
        >>> type(Baseline(weighting=ClassWeighting).weighting()).__name__
        'ClassWeighting'
    """

    weighting: Callable[[], ClassWeighting] | None = None


@dataclass(frozen=True)  # no slots: jsonargparse takes defaults apart by their __dict__
class Hardware:
    """What each training runs on; options of the Trainer.

    Args:
        accelerator: such as ``"cpu"`` or ``"gpu"``.
        devices: one device: 1, or a list with its number. ``--jobs`` is for several.
        precision: such as ``"32-true"`` or ``"bf16-mixed"``.

    Example:
        >>> Hardware(precision="bf16-mixed").devices
        1
    """

    accelerator: str = "auto"
    devices: int | list[int] = 1
    precision: str | int = "32-true"


@dataclass(frozen=True, slots=True)
class Experiment:
    """Query models, the subsets chosen from what they saw, final models on those, and a test.

    Args:
        data: the LightningDataModule. Its test loader gives the numbers, its validation loader the
            recalls for the quotas, ``plain_dataloader()`` (if it has one) the training set without
            augmentation for scoring passes; ``class_names`` are read if there are any.
        model: the LightningModule; a schedule that steps with every batch is planned with
            :func:`~lightning_fairprune.planned_stepping_batches`.
        query: the models that choose.
        final: the models that are compared.
        densities: fractions of the training samples to keep, in (0, 1).
        seeds: of which each has its own query models.
        methods: by name, how final models' samples are chosen.
        one_fit: by name, pruning inside one fit.
        baselines: by name, models on all the data; the first is what distortion is relative to.
        group_by: groups in place of classes in quotas and results: the key or position of the group
            ids in a batch, or a function from the batch to them.
        trainer: what a training runs on.
        name: what the tables call the experiment.

    Raises:
        ValueError: If a setting is out of range or two rows would have the same name.

    Example:
        >>> grid = Experiment(
        ...     data=pl.LightningDataModule,
        ...     model=pl.LightningModule,
        ...     query=Query(epochs=8),
        ...     final=Final(epochs=6),
        ...     densities=(0.5, 0.3),
        ...     methods={"random": Method()},
        ... )
        >>> grid.seeds
        (0, 1, 2)
    """

    data: Callable[[], pl.LightningDataModule]
    model: Callable[[], pl.LightningModule]
    query: Query
    final: Final
    densities: tuple[float, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    methods: dict[str, Method] = field(default_factory=dict)
    one_fit: dict[str, OneFit] = field(default_factory=dict)
    baselines: dict[str, Baseline] = field(default_factory=dict)
    group_by: GroupBy | None = None
    trainer: Hardware = field(default_factory=Hardware)
    name: str = "experiment"

    def __post_init__(self) -> None:
        for density in self.densities:
            if not 0 < density < 1:
                raise ValueError(
                    f"`densities` must be in (0, 1), got {density}; a model on all the data is one of "
                    "`baselines`."
                )
        for name in ("densities", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"`{name}` must be different numbers, at least one, got {values}.")
        names = [*self.methods, *self.one_fit, *self.baselines]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(
                f"`methods`, `one_fit` and `baselines` must have different names, got {twice[0]!r} twice."
            )
        for name in names:
            if not _NAME.fullmatch(name):
                raise ValueError(
                    f"the name {name!r} is also that of a folder: letters, digits and . _ + - please."
                )
        self._check_scores()

    def _check_scores(self) -> None:
        known: dict[str, object] = {}
        for method in self.methods.values():
            if method.score is not None and method.score_on == "pass":
                name = score_name(method.score)
                if repr(known.setdefault(name, method.score)) != repr(method.score):
                    raise ValueError(
                        f"`methods` have two different scores called {name!r}: rename one of them."
                    )


def score_name(score: Callable[..., Any]) -> str:
    """Returns what to call a score: the name of the function, or of the class.

    Example:
        >>> from lightning_fairprune import scores
        >>> score_name(scores.el2n)
        'el2n'
    """
    return getattr(score, "__name__", type(score).__name__)
