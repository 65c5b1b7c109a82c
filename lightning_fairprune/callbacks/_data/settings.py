"""The arguments of DataPruning: checked once, read by all its parts, and written as text for people."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from lightning_fairprune._observe.groups import GroupBy, LogitsFn
from lightning_fairprune.callbacks._arguments import (
    as_text,
    at_least,
    check_same,
    function,
    number,
    one_of,
    shrinkage,
)
from lightning_fairprune.groups import Discovered
from lightning_fairprune.quotas import Minimax
from lightning_fairprune.records.settings import called
from lightning_fairprune.scoring.wanted import kind_of
from lightning_fairprune.selection import Keep
from lightning_fairprune.selection.candidates import check_candidates
from lightning_fairprune.selection.decision import needs_difficulty

After = Literal["continue", "restart"]
Rhythm = int | Literal["auto"] | None

# What may change when a fit is resumed: how often quotas and samples are updated.
_FREE = ("resample_every", "update_every", "recall_window", "shrinkage")


@dataclass(frozen=True)
class ScorePass:
    """How DataPruning computes scores in one pass at the end of the warm-up.

    See :func:`~lightning_fairprune.score_pass`.

    Args:
        dataloader: loader over the training samples without augmentation, in the order of the training set: the
            name of a method of the data module or the module, or a function that returns one; None takes the
            training loader, whose data set may augment.
        layer: name of the layer whose inputs are the features; None takes the last linear layer.
        checkpoints: weights of query models to average over, instead of those at the end of the warm-up.
        resume: file for the progress of the pass, so that a fit that was stopped in it resumes there.

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
    score_on: Literal["training", "pass"] | ScorePass
    quota: Callable[..., Any] | None
    keep: Keep
    cutoff: float
    pool: float
    after: After
    resample_every: Rhythm
    update_every: Rhythm
    recall_window: int
    shrinkage: float | Literal["auto"]
    floor: int
    repeat: int
    guard: bool
    recall_dataloader: int
    group_by: Discovered | GroupBy | None
    logits_fn: LogitsFn | None
    seed: int
    dry_run: bool | list[float]

    def __post_init__(self) -> None:
        stays = self.after == "restart"
        if self.resample_every == "auto":
            object.__setattr__(self, "resample_every", None if stays else 1)
        if self.update_every == "auto":
            # Updated after every epoch quotas overshoot: recalls respond to them with a delay.
            object.__setattr__(self, "update_every", None if stays else 2)
        self._check()
        self._check_score()
        if self.score_on == "pass":
            object.__setattr__(self, "score_on", ScorePass())
        # Checkpoints with numbers of numpy do not load.
        object.__setattr__(self, "density", float(self.density))
        object.__setattr__(self, "seed", int(self.seed))
        object.__setattr__(self, "repeat", int(self.repeat))

    @property
    def score_pass(self) -> ScorePass | None:
        """The pass that computes the score; None if training records its signals."""
        return self.score_on if isinstance(self.score_on, ScorePass) else None

    @property
    def watches_labels(self) -> bool:
        """Whether the warm-up records what wrong labels are estimated from: for quotas that grow while a recall does not."""
        return isinstance(self.quota, Minimax) and self.group_by is None

    @property
    def discovered(self) -> Discovered | None:
        """The groups to discover; None if there are none, or labelled ones."""
        return self.group_by if isinstance(self.group_by, Discovered) else None

    @property
    def labelled(self) -> GroupBy | None:
        """Where a batch has its groups; None without them."""
        return None if isinstance(self.group_by, Discovered) else self.group_by

    def as_text(self) -> dict[str, Any]:
        """Returns what the fit was asked for, as text, numbers of Python and lists of them."""
        text = as_text(self, without=("recall_dataloader", "logits_fn", "dry_run"))
        return text | ({"score_on": "pass"} if self.score_on == ScorePass() else {})

    def to_resume(self) -> dict[str, Any]:
        """Returns what a checkpoint holds of the settings: also where the recalls come from."""
        return self.as_text() | {"recall_dataloader": int(self.recall_dataloader)}

    def check_resumed(self, before: Mapping[str, Any]) -> None:
        """Raises if a fit that is resumed with these settings would keep other samples."""
        fixed = {name: value for name, value in self.to_resume().items() if name not in _FREE}
        quota = str(before.get("quota"))
        if quota.startswith("Minimax(") and "worst" not in quota:  # older ones had no bound
            fixed["quota"] = re.sub(r", worst=[^)]*", "", str(fixed["quota"]))
        # The address of an object differs between processes.
        comparable = {k: v for k, v in fixed.items() if " at 0x" not in f"{before.get(k)} {v}"}
        check_same("DataPruning", comparable, before)

    def _check(self) -> None:
        if not isinstance(self.guard, bool):
            raise TypeError(f"`guard` must be True or False, got {self.guard!r}.")
        function("score", self.score, "scores.el2n")
        function("quota", self.quota, "quotas.drop")
        for name in ("density", "warmup_epochs", "cutoff", "pool"):
            number(name, getattr(self, name))
        for name in ("recall_window", "floor", "repeat", "recall_dataloader", "seed"):
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
        by_score = needs_difficulty(self.quota)
        if by_score and self.score is None:
            raise ValueError(
                f"`quota` {called(self.quota)} needs the difficulty of each class, which is computed from a "
                "`score`, got score=None: give one, such as scores.el2n."
            )
        if (self.score is None) != (self.keep == "random") and not by_score:
            raise ValueError(
                "`score` selects samples only with keep='hard', 'easy' or 'stratified', and those "
                f"need a score, got score={'None' if self.score is None else 'a function'} and "
                f"keep={self.keep!r}."
            )
        check_candidates(self.keep, self.cutoff, self.pool)
        self._check_quota()
        for name in ("resample_every", "update_every"):
            every = getattr(self, name)
            if every is not None:
                number(name, every, whole=True)
                if every < 1:
                    raise ValueError(f"`{name}` must be None or at least 1 epoch, got {every}.")
        at_least("recall_window", self.recall_window, 1, "validation")
        shrinkage(self.shrinkage)
        at_least("floor", self.floor, 0, "samples")
        at_least("repeat", self.repeat, 1)
        at_least("recall_dataloader", self.recall_dataloader, 0)

    def _check_quota(self) -> None:
        if self.quota is None:
            if self.discovered is not None:
                raise ValueError(
                    "`group_by` discovers groups for the quotas, but there is no `quota`: give one, or leave it out."
                )
            return
        parameters = inspect.signature(self.quota).parameters
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        if self.repeat != 1 and "repeat" not in parameters and not takes_any:
            raise ValueError(
                f"`repeat`={self.repeat} needs a `quota` that takes `repeat`, as those of lightning_fairprune.quotas "
                f"do, but {called(self.quota)} does not: let quotas be up to `repeat` times the sizes, or leave "
                "`repeat` at 1."
            )
        unknown = [
            name
            for name, parameter in parameters.items()
            if parameter.default is parameter.empty
            and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
            and name not in ("sizes", "recall", "budget", "difficulty")
        ]
        if unknown:
            raise ValueError(
                "`quota` must take (sizes, recall, budget) or (sizes, budget), but "
                f"{called(self.quota)} also needs {', '.join(map(repr, unknown))}: give it with "
                "functools.partial."
            )

    def _check_score(self) -> None:
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
