"""An experiment as a frozen record, which jsonargparse reads from YAML."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import lightning.pytorch as pl

from lightning_fairprune._observe.groups import GroupBy
from lightning_fairprune.experiments._length import epoch_correction
from lightning_fairprune.experiments._parts import (
    Baseline,
    Final,
    Finetune,
    Hardware,
    Method,
    OneFit,
    Query,
    WeightMethod,
    score_name,
)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


@dataclass(frozen=True, slots=True)
class Experiment:
    """A grid of query models, final models on subsets, baselines and models with pruned weights.

    Args:
        data: the LightningDataModule. Its test loader gives the results, its validation loader the
            recalls for the quotas, ``plain_dataloader()`` (if there is one) the training set without
            augmentation for scoring passes; it may have ``class_names``.
        model: the LightningModule; a schedule that steps with every batch must be planned with
            :func:`~lightning_fairprune.planned_stepping_batches`.
        final: length of the compared trainings.
        query: the models that the methods select by.
        densities: fractions of the training samples to keep, in (0, 1).
        seeds: each has its own query models.
        methods: by name, the selections of samples for final models.
        one_fit: by name, pruning inside a single fit.
        baselines: by name, models on all the data; distortion is relative to the first.
        sparsities: fractions of the weights to remove, in (0, 1).
        weights: by name, the prunings of the weights of the first baseline.
        finetune: its training during and after the pruning.
        group_by: groups in place of classes in quotas and results: the key or position of the group
            ids in a batch, or a function from the batch to them.
        trainer: hardware of each training.
        name: of the experiment, in tables.

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
    final: Final
    query: Query = field(default_factory=Query)
    densities: tuple[float, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    methods: dict[str, Method] = field(default_factory=dict)
    one_fit: dict[str, OneFit] = field(default_factory=dict)
    baselines: dict[str, Baseline] = field(default_factory=dict)
    sparsities: tuple[float, ...] = ()
    weights: dict[str, WeightMethod] = field(default_factory=dict)
    finetune: Finetune = field(default_factory=Finetune)
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
        for sparsity in self.sparsities:
            if not 0 < sparsity < 1:
                raise ValueError(
                    f"`sparsities` must be in (0, 1), fractions of weights to remove, got {sparsity}; "
                    "ratio r is 1 - 1 / r."
                )
        needed = {"seeds": True, "densities": self.methods or self.one_fit}
        for name, need in (needed | {"sparsities": self.weights}).items():
            values = getattr(self, name)
            if (need and not values) or len(set(values)) < len(values):
                raise ValueError(f"`{name}` must be different numbers, at least one, got {values}.")
        self._check_names()
        self._check_scores()
        self._check_lengths()

    @property
    def dense(self) -> str:
        """The first baseline, whose weights are pruned and which distortion is relative to."""
        return next(iter(self.baselines))

    def _check_names(self) -> None:
        names = [*self.methods, *self.one_fit, *self.weights, *self.baselines]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(
                "`methods`, `one_fit`, `weights` and `baselines` must have different names, got "
                f"{twice[0]!r} twice."
            )
        for name in (*names, self.name):
            if not _NAME.fullmatch(name):
                raise ValueError(
                    f"the name {name!r} is also used as a folder name: use only letters, digits and . _ + -."
                )
        if self.weights and not self.baselines:
            raise ValueError(
                "`weights` are pruned from the first of `baselines`, and there is none: add baselines, "
                "such as full: {}."
            )

    def _check_scores(self) -> None:
        known: dict[str, object] = {}
        for method in self.methods.values():
            if method.score is not None and method.score_on == "pass":
                name = score_name(method.score)
                if repr(known.setdefault(name, method.score)) != repr(method.score):
                    raise ValueError(
                        f"`methods` have two different scores called {name!r}: rename one of them."
                    )

    def _check_lengths(self) -> None:
        for part, trained in (("methods", "query"), ("weights", "finetune")):
            epochs = getattr(self, trained).epochs
            if getattr(self, part) and epochs < 1:
                raise ValueError(
                    f"`{trained}.epochs` must be at least 1 where there are `{part}`, got {epochs}."
                )
        for density in self.densities if self.one_fit else ():
            seen = float(self.final.epochs)
            if self.final.length == "epoch_correction":
                seen = density * epoch_correction(self.final.epochs, density)
            if seen <= 1:  # the warm-up takes at least one epoch
                raise ValueError(
                    f"`one_fit` must see more than all samples once, but at density {density:g} "
                    f"final.epochs: {self.final.epochs} are {seen:.3g} times all: raise final.epochs."
                )
