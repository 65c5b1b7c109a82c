"""The arguments of DataPruning: checked once, read by all its parts, and written as text for people."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from lightning_fairprune._observe.groups import GroupBy, LogitsFn
from lightning_fairprune.callbacks._arguments import check_same, function, number, one_of
from lightning_fairprune.records.settings import called, name_of
from lightning_fairprune.scoring.wanted import kind_of
from lightning_fairprune.selection import Keep

__all__ = ["DataSettings", "ScorePass"]

After = Literal["continue", "restart"]
Rhythm = int | Literal["auto"] | None

# What decides which samples stay; how often quotas follow may change when a fit is resumed.
_FIXED = (
    "density",
    "warmup_epochs",
    "score",
    "score_on",
    "quota",
    "keep",
    "after",
    "floor",
    "group_by",
    "seed",
)


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
        resume: file that keeps what is done, so that a fit that was stopped in the pass continues there.

    Example:
        >>> ScorePass(dataloader="plain_dataloader").checkpoints
        ()
    """

    dataloader: str | Callable[[], Any] | None = None
    layer: str | None = None
    checkpoints: tuple[str, ...] = ()
    resume: str | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class DataSettings:
    """The arguments of :class:`~lightning_fairprune.DataPruning`, with ``"auto"`` and ``"pass"`` resolved."""

    density: float
    warmup_epochs: int | float
    score: Callable[..., Any] | None
    quota: Callable[..., Any] | None
    keep: Keep
    after: After
    resample_every: Rhythm
    update_every: Rhythm
    recall_window: int
    shrinkage: float
    floor: int
    recall_dataloader: int
    group_by: GroupBy | None
    logits_fn: LogitsFn | None
    seed: int
    score_on: Literal["training", "pass"] | ScorePass
    dry_run: bool | list[float]

    def __post_init__(self) -> None:
        stays = self.after == "restart"
        if self.resample_every == "auto":
            object.__setattr__(self, "resample_every", None if stays else 1)
        if self.update_every == "auto":
            # Quotas that answer every epoch overshoot: the recalls have not had time to answer back.
            object.__setattr__(self, "update_every", None if stays else 2)
        self._check()
        self._check_way()
        if self.score_on == "pass":
            object.__setattr__(self, "score_on", ScorePass())
        # Numbers of numpy would end up in checkpoints, which then do not load.
        object.__setattr__(self, "density", float(self.density))
        object.__setattr__(self, "seed", int(self.seed))

    @property
    def score_pass(self) -> ScorePass | None:
        """The pass that computes the score; None if training records what it needs."""
        return self.score_on if isinstance(self.score_on, ScorePass) else None

    def as_text(self) -> dict[str, Any]:
        """Returns what the fit was asked for, as text, numbers of Python and lists of them."""
        settings = {
            "density": self.density,
            "warmup_epochs": self.warmup_epochs,
            "score": name_of(self.score),
            "score_on": "pass" if self.score_on == ScorePass() else name_of(self.score_on),
            "quota": name_of(self.quota),
            "keep": self.keep,
            "after": self.after,
            "resample_every": self.resample_every,
            "update_every": self.update_every,
            "recall_window": self.recall_window,
            "shrinkage": self.shrinkage,
            "floor": self.floor,
            "group_by": name_of(self.group_by),
            "seed": self.seed,
        }
        return {k: v.item() if isinstance(v, np.generic) else v for k, v in settings.items()}

    def check_resumed(self, before: Mapping[str, Any]) -> None:
        """Raises unless a fit that is resumed with these settings keeps the samples it would have kept."""
        now = self.as_text()
        # An object that is written with its address is another one in each process.
        names = [name for name in _FIXED if " at 0x" not in f"{before.get(name)} {now[name]}"]
        check_same("DataPruning", {name: now[name] for name in names}, before)

    def _check(self) -> None:
        function("score", self.score, "scores.el2n")
        function("quota", self.quota, "quotas.drop")
        for name in ("density", "warmup_epochs", "shrinkage"):
            number(name, getattr(self, name))
        for name in ("recall_window", "floor", "recall_dataloader", "seed"):
            number(name, getattr(self, name), whole=True)
        if not 0 < self.density <= 1:
            raise ValueError(f"`density` must be in (0, 1], got {self.density}.")
        warmup = self.warmup_epochs
        if isinstance(warmup, float) and not 0 < warmup < 1:
            raise ValueError(
                "`warmup_epochs` must be a whole number of epochs or a fraction of training in (0, 1), "
                f"got {warmup}."
            )
        if warmup <= 0:
            raise ValueError(
                f"`warmup_epochs` must be at least 1, got {warmup}: labels, scores and recalls "
                "come from the warm-up. To train on a selection from the start use "
                "FairPruneDataModule(datamodule, selection=...)."
            )
        one_of("keep", self.keep, get_args(Keep))
        one_of("after", self.after, get_args(After))
        if (self.score is None) != (self.keep == "random"):
            raise ValueError(
                "`score` selects samples only with keep='hard', 'easy' or 'stratified', and those "
                f"need a score, got score={'None' if self.score is None else 'a function'} and "
                f"keep={self.keep!r}."
            )
        self._check_quota()
        for name in ("resample_every", "update_every"):
            every = getattr(self, name)
            if every is not None:
                number(name, every, whole=True)
                if every < 1:
                    raise ValueError(f"`{name}` must be None or at least 1 epoch, got {every}.")
        if self.recall_window < 1:
            raise ValueError(
                f"`recall_window` must be at least 1 validation, got {self.recall_window}."
            )
        if not self.shrinkage >= 0:
            raise ValueError(f"`shrinkage` must be 0 or more samples, got {self.shrinkage}.")
        if self.floor < 0:
            raise ValueError(f"`floor` must be 0 or more samples, got {self.floor}.")
        if self.recall_dataloader < 0:
            raise ValueError(
                f"`recall_dataloader` must be 0 or more, got {self.recall_dataloader}."
            )

    def _check_quota(self) -> None:
        if self.quota is None:
            return
        unknown = [
            name
            for name, parameter in inspect.signature(self.quota).parameters.items()
            if parameter.default is parameter.empty
            and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
            and name not in ("sizes", "recall", "budget")
        ]
        if unknown:
            raise ValueError(
                "`quota` must take (sizes, recall, budget) or (sizes, budget), but "
                f"{called(self.quota)} also needs {', '.join(map(repr, unknown))}: give it with "
                "functools.partial."
            )

    def _check_way(self) -> None:
        """Raises a ValueError unless the score can be computed in the way that was asked for."""
        score, way = self.score, self.score_on
        if way not in ("training", "pass") and not isinstance(way, ScorePass):
            raise ValueError(f"`score_on` must be 'training', 'pass' or a ScorePass, got {way!r}.")
        kind = "dynamics" if score is None else kind_of(score)
        if way == "training" and kind != "dynamics":
            needs = "features" if kind == "features" else "the model"
            raise ValueError(
                f"`score` {called(score)} is computed from {needs}, not from "
                "training dynamics: use score_on='pass'."
            )
        if way != "training" and score is None:
            raise ValueError(
                "`score_on` asks for a pass over the training data, but there is no `score` to compute: "
                "leave it out, or give a score and keep='hard', 'easy' or 'stratified'."
            )
