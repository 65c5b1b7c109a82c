"""The parts of an experiment as frozen records: query models, lengths, methods."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from lightning_fairprune import geometry, quotas
from lightning_fairprune.callbacks import ClassWeighting, DataPruning, WeightPruning
from lightning_fairprune.selection import Keep
from lightning_fairprune.selection.candidates import check_candidates
from lightning_fairprune.selection.decision import needs_difficulty


@dataclass(frozen=True)  # no slots, as of Hardware
class Query:
    """The models that show which classes and samples are hard.

    Args:
        epochs: of each query model, over all the data; at least 1 if there are `methods`.
        models: number for each seed; recalls and scores are averaged over them.
        early: fraction of `epochs` in (0, 1] before the scores of methods with ``at: early``.
        shrinkage: pseudo-samples at the mean recall that are added to every class; 0 as published, ``"auto"``
            as in `DataPruning`.

    Example:
        >>> Query(epochs=160).early_epoch
        16
    """

    epochs: int = 0
    models: int = 1
    early: float = 0.1
    shrinkage: float | Literal["auto"] = 0.0

    def __post_init__(self) -> None:
        for name, value, least in (("epochs", self.epochs, 0), ("models", self.models, 1)):
            if value < least:
                raise ValueError(f"`query.{name}` must be at least {least}, got {value}.")
        if not 0 < self.early <= 1:
            raise ValueError(f"`query.early` must be in (0, 1], got {self.early}.")
        if self.shrinkage != "auto" and not self.shrinkage >= 0:
            raise ValueError(f"`query.shrinkage` must be 0 or more samples, got {self.shrinkage}.")

    @property
    def early_epoch(self) -> int:
        """Number of epochs before early scores are computed, at least 1."""
        return max(1, round(self.early * self.epochs))


@dataclass(frozen=True, slots=True)
class Final:
    """The length of the compared trainings.

    Args:
        epochs: of a model on all the data.
        length: of a model on part of it. ``"equal_samples"``: until it has seen as many samples;
            ``"epoch_correction"``: ``int((0.5 + 0.5 d) epochs / d)`` epochs at density d, as in the
            published code of DRoP: between half as many samples and as many.
    """

    epochs: int
    length: Literal["equal_samples", "epoch_correction"] = "equal_samples"

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"`final.epochs` must be at least 1, got {self.epochs}.")


@dataclass(frozen=True, slots=True)
class Method:
    """A way to select the samples for a final model, by the query models.

    Args:
        score: how hard each sample is, higher = harder: a function of
            :mod:`lightning_fairprune.scores`, :mod:`~lightning_fairprune.gradients` or
            :mod:`~lightning_fairprune.geometry`, or your own; None with ``keep: random``.
        keep: which samples of a class are kept.
        quota: samples per class, ``(sizes, recall, budget)`` or ``(sizes, budget) -> int64 [K]``;
            None for no quotas. :func:`~lightning_fairprune.quotas.of_subset` takes as many of each class
            as `score` and `keep` would without quotas, but at random: StrategyQ of the DRoP paper.
            :func:`~lightning_fairprune.quotas.difficulty` sets them by the score, not by recalls.
        score_on: ``"training"``: the score reads the signals of the query models' training steps;
            ``"pass"``: one pass over the training set in eval mode, without augmentation.
        at: whether the score is computed early in the training of a query model or at its end.
        cutoff: fraction of each class, the hardest, that is never kept, see :func:`~lightning_fairprune.select`.
        pool: fraction of each class, drawn at random, to choose from.
    """

    score: Callable[..., Any] | None = None
    keep: Keep = "random"
    quota: Callable[..., Any] | None = None
    score_on: Literal["training", "pass"] = "training"
    at: Literal["early", "end"] = "end"
    cutoff: float = 0.0
    pool: float = 1.0

    def __post_init__(self) -> None:
        by_score = needs_difficulty(self.quota)
        if by_score and self.score is None:
            raise ValueError(
                "quota: difficulty needs the `score` that the difficulty of each class is computed from, got "
                "score: null: give one, such as lightning_fairprune.scores.el2n."
            )
        if (self.score is None) != (self.keep == "random") and not by_score:
            raise ValueError(
                "a method has a `score` and keep: hard, easy or stratified, or neither, got score: "
                f"{'null' if self.score is None else score_name(self.score)} and keep: {self.keep}."
            )
        check_candidates(self.keep, self.cutoff, self.pool)
        if self.quota is quotas.of_subset and self.score is None:
            raise ValueError(
                "quota: of_subset needs the `score` whose own subset determines how many samples of each "
                "class are kept, got score: null: give one with keep: hard, or take quotas.proportional."
            )

    @property
    def models_of_score(self) -> int | None:
        """Number of query models that the score averages over; None for all, 1 for k-center orders."""
        return 1 if self.score in (geometry.k_center_distance, geometry.class_k_center) else None


@dataclass(frozen=True, slots=True)
class OneFit:
    """Pruning inside the single fit of the final model, without a query model.

    Args:
        warmup: fraction of the samples seen in the warm-up on all the data, rounded down to whole epochs,
            at least one.
        prune: :class:`~lightning_fairprune.DataPruning` with any of its arguments but density,
            warmup_epochs and seed.

    Example:
        >>> OneFit(warmup=0.25).prune(0.3, 2).settings.warmup_epochs
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
    """

    weighting: Callable[[], ClassWeighting] | None = None


@dataclass(frozen=True)  # no slots, as of Hardware
class Finetune:
    """The training of a dense model during and after the pruning of its weights.

    Args:
        epochs: over all the data, at least 1 if there are `weights`.
        lr_factor: multiplies all learning rates of the model's own optimisers and schedules; the schedule
            restarts and spans `epochs`.
    """

    epochs: int = 0
    lr_factor: float = 1.0

    def __post_init__(self) -> None:
        if self.epochs < 0:
            raise ValueError(f"`finetune.epochs` must be 0 or more, got {self.epochs}.")
        if not self.lr_factor > 0:
            raise ValueError(f"`finetune.lr_factor` must be above 0, got {self.lr_factor}.")


@dataclass(frozen=True, slots=True)
class WeightMethod:
    """A way to prune the weights of the dense model, the first of the baselines.

    Args:
        prune: :class:`~lightning_fairprune.WeightPruning` with any of its arguments but sparsity,
            start, end and seed.
        start: of WeightPruning, counted within the fine-tuning; 0 prunes before its first step.
        end: of WeightPruning; with both 0 all weights are pruned in one step.

    Raises:
        ValueError: If `prune` sets an argument of the experiment, or an argument is out of range.

    Example:
        >>> WeightMethod().at(0.9, seed=3).settings.sparsity
        0.9
    """

    prune: Callable[[], WeightPruning] = WeightPruning
    start: int | float = 0
    end: int | float = 0

    def __post_init__(self) -> None:
        given, default = self.prune().settings, WeightPruning().settings
        for name in ("sparsity", "start", "end", "seed"):
            value = getattr(given, name)
            if value != getattr(default, name):
                raise ValueError(
                    f"`prune` of weights must leave {name} to the experiment, got {value}: sparsity "
                    "and seed come from `sparsities` and `seeds`, start and end are set beside `prune`."
                )
        self.at(0.5, seed=0)

    def at(self, sparsity: float, seed: int) -> WeightPruning:
        """Returns a callback for one model."""
        # Annotated with its arguments, jsonargparse would take them for those of the call.
        prune: Callable[..., WeightPruning] = self.prune
        return prune(sparsity=sparsity, start=self.start, end=self.end, seed=seed)


@dataclass(frozen=True)  # no slots: jsonargparse takes defaults apart by their __dict__
class Hardware:
    """The hardware of each training; options of the Trainer.

    Args:
        accelerator: such as ``"cpu"`` or ``"gpu"``.
        devices: one device: 1, or a list with its number. ``--jobs`` is for several.
        precision: such as ``"32-true"`` or ``"bf16-mixed"``.
    """

    accelerator: str = "auto"
    devices: int | list[int] = 1
    precision: str | int = "32-true"


def score_name(score: Callable[..., Any]) -> str:
    """Returns the name of a score: of its function or class.

    Example:
        >>> from lightning_fairprune import scores
        >>> score_name(scores.el2n)
        'el2n'
    """
    return getattr(score, "__name__", type(score).__name__)
