"""From labels, scores and recalls to the samples that are kept, over the course of a fit."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_fairprune.quotas import class_difficulty, separability
from lightning_fairprune.selection import stalls
from lightning_fairprune.selection._record import Selection
from lightning_fairprune.selection._select import Keep, select


class Estimate(NamedTuple):
    """Quotas, the recalls that they follow from, and the epoch after which they were estimated.

    `held` says which classes the guard holds at their proportional share, uint8 [K]: 1 on trial, 2 frozen;
    3 has answered and is free, as 0 is.
    """

    epoch: int
    recall: Tensor | None
    quota: Tensor | None
    held: Tensor | None = None


class Decision:
    """Estimates quotas and draws subsets with them; the k-th draw uses the seed plus k.

    Args:
        density: fraction of samples to keep.
        quota_fn: ``(sizes, recall, budget)`` or ``(sizes, budget) -> int64 [K]``; None for no quotas. One that
            asks for ``difficulty`` gets the :func:`~lightning_fairprune.quotas.class_difficulty` of the scores.
        keep: which samples of a class, see :func:`~lightning_fairprune.select`.
        seed: of the first draw.
        floor: samples that each class keeps at least, passed to `quota_fn` unless 0.
        cutoff: fraction of each class, the hardest, that is never kept, see :func:`~lightning_fairprune.select`.
        pool: fraction of each class, drawn anew for each subset, to choose from.
        repeat: how often an epoch may draw the same sample, passed to `quota_fn` unless 1.
        guard: whether a class that does not answer to more samples is held at its proportional share, see
            :mod:`~lightning_fairprune.selection.stalls`; only if `quota_fn` takes ``recall`` and ``cap``.

    Example:
        >>> from lightning_fairprune import quotas
        >>> decision = Decision(0.5, quotas.balanced)
        >>> decision.learn(torch.tensor([0, 0, 0, 0, 1, 1]), num_classes=2)
        >>> decision.estimate(epoch=3).tolist()
        [2, 1]
        >>> decision.draw().quota.tolist()
        [2, 1]
    """

    def __init__(
        self,
        density: float,
        quota_fn: Callable[..., Tensor] | None,
        keep: Keep = "random",
        seed: int = 0,
        floor: int = 0,
        cutoff: float = 0.0,
        pool: float = 1.0,
        repeat: int = 1,
        guard: bool = False,
    ) -> None:
        self.density, self.quota_fn, self.keep, self.seed = density, quota_fn, keep, seed
        self.floor, self.repeat = floor, repeat
        self.limits: dict[str, Any] = {"cutoff": cutoff, "pool": pool, "repeat": repeat}
        self.needs_recall = needs_recall(quota_fn)
        self.needs_difficulty = needs_difficulty(quota_fn)
        self.guards = guard and self.needs_recall and _has(quota_fn, "cap")
        self.quota: Tensor | None = None
        self.history: list[Estimate] = []
        self.draws = 0
        self.target: Tensor | None = None
        self.scores: Tensor | None = None
        self._num_classes = self._population = 0
        reset = getattr(quota_fn, "reset", None)
        if reset is not None:  # a rule with state may come from another fit
            reset()

    def budget(self, num_samples: int) -> int:
        """Returns how many of `num_samples` to keep, at least one."""
        return max(1, round(self.density * num_samples))

    def learn(
        self,
        target: Tensor,
        scores: Tensor | None = None,
        num_classes: int = 0,
        *,
        population: int | None = None,
    ) -> None:
        """Sets labels (or groups), -1 where a sample cannot be kept, and scores, both [N].

        The density is a fraction of `population` samples, N by default.
        """
        self.target, self.scores, self._num_classes = target, scores, num_classes
        self._population = len(target) if population is None else population

    def estimate(
        self, epoch: int, recall: Tensor | None = None, support: Tensor | None = None
    ) -> Tensor | None:
        """Sets and returns the quotas, int64 [K], from recalls, float [K]; NaN for unknown ones.

        `support` are the samples of one validation behind each recall, int64 [K]; the guard needs them.
        """
        if self.quota_fn is None:
            return None
        target, budget = self._learned(), self.budget(self._population)
        known = target[target >= 0]
        num_classes = max(int(known.max()) + 1, self._num_classes)
        if recall is not None:
            num_classes = max(num_classes, len(recall))
            unknown = recall.new_full((num_classes - len(recall),), torch.nan)
            recall = torch.cat([recall, unknown])
        sizes = torch.bincount(known, minlength=num_classes)
        difficulty = None
        if self.needs_difficulty:
            assert self.scores is not None
            difficulty = class_difficulty(self.scores, target, num_classes=num_classes)
        held = None
        if self.guards and recall is not None and support is not None:
            support = torch.cat([support, support.new_zeros(num_classes - len(support))])
            held = stalls.held(self.history, recall, support, stalls.counted(sizes, self.repeat))
        self.quota = self.quotas(sizes, recall, budget, difficulty, held)
        self.history.append(Estimate(epoch, recall, self.quota, held))
        return self.quota

    def quotas(
        self,
        sizes: Tensor,
        recall: Tensor | None,
        budget: int,
        difficulty: Tensor | None = None,
        held: Tensor | None = None,
    ) -> Tensor:
        """Returns the quotas of the rule and checks them; without difficulties it gets equal ones.

        Classes that are `held` get their proportional share at most.
        """
        assert self.quota_fn is not None
        options = options_of(self.floor, self.repeat)
        if self.needs_difficulty:
            options["difficulty"] = torch.ones(len(sizes)) if difficulty is None else difficulty
        if held is not None and bool((held > 0).any()):
            options["cap"] = self._caps(held, sizes, budget)
        given = (sizes, recall) if self.needs_recall else (sizes,)
        quota: Tensor = self.quota_fn(*given, budget=budget, **options)
        _check(quota, sizes, budget)
        return quota

    def _caps(self, held: Tensor, sizes: Tensor, budget: int) -> Tensor:
        """Returns the caps of the held classes, within those that the rule has, and not below its floor."""
        caps = stalls.caps(held, sizes, budget, self.repeat).clamp(min=self.floor)
        assert self.quota_fn is not None
        own = (
            inspect.signature(self.quota_fn).parameters["cap"].default
        )  # None, or what a partial gives
        return caps if own is None else caps.minimum(torch.as_tensor(own))

    @property
    def frozen(self) -> list[int]:
        """The classes that more data does not help, as the guard found."""
        return stalls.frozen(self.history)

    def draw(self) -> Selection:
        """Returns the next subset with the current quotas."""
        target = self._learned()
        quota = self.budget(self._population) if self.quota is None else self.quota
        seed = self.seed + self.draws
        self.draws += 1
        score = None if self.keep == "random" else self.scores
        return select(target, quota, score=score, keep=self.keep, seed=seed, **self.limits)

    def by_score_alone(self) -> str:
        """Returns how unequally a selection by score of the same size, without quotas, would treat the classes."""
        target = self._learned()
        assert self.scores is not None
        keep: Keep = "hard" if self.keep == "random" else self.keep
        budget = self.budget(self._population)
        alone = select(target, budget, score=self.scores, keep=keep, seed=self.seed, **self.limits)
        density = alone.class_density
        few, many = int(density.nan_to_num(2).argmin()), int(density.nan_to_num(-1).argmax())
        return (
            f"the score alone, without quotas, would keep {density[few]:.0%} of class {few} and {density[many]:.0%} of "
            f"class {many}; the classes explain {separability(self.scores, target):.0%} of its order"
        )

    def _learned(self) -> Tensor:
        if self.target is None:
            raise RuntimeError("no samples were recorded yet: call learn() first.")
        return self.target

    def state_dict(self) -> dict[str, Any]:
        """Returns CPU tensors and primitives."""
        quota_state = getattr(self.quota_fn, "state_dict", None)
        return {
            "quota": self.quota,
            "quota_fn": None if quota_state is None else quota_state(),
            "history": [tuple(estimate) for estimate in self.history],
            "draws": self.draws,
            "target": None if self.target is None else _narrow(self.target),
            "scores": self.scores,
            "num_classes": self._num_classes,
            "population": self._population,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.quota, self.draws = state["quota"], state["draws"]
        self.history = [Estimate(*estimate) for estimate in state["history"]]
        if state["target"] is not None:
            self.learn(
                state["target"].long(),
                state["scores"],
                state["num_classes"],
                population=state.get("population"),  # older ones kept a fraction of all
            )
        if state["quota_fn"] is not None and hasattr(self.quota_fn, "load_state_dict"):
            self.quota_fn.load_state_dict(state["quota_fn"])  # type: ignore[union-attr]


def options_of(floor: int, repeat: int) -> dict[str, Any]:
    """Returns the options that a quota function is called with; a function of the user's may have neither."""
    return ({"floor": floor} if floor else {}) | ({"repeat": repeat} if repeat != 1 else {})


def needs_recall(quota_fn: Callable[..., Any] | None) -> bool:
    """Whether a quota function takes recalls."""
    return _has(quota_fn, "recall")


def _has(quota_fn: Callable[..., Any] | None, name: str) -> bool:
    return quota_fn is not None and name in inspect.signature(quota_fn).parameters


def needs_difficulty(quota_fn: Callable[..., Any] | None) -> bool:
    """Whether a quota function asks for difficulties, and does not have fixed ones."""
    if quota_fn is None:
        return False
    asked = inspect.signature(quota_fn).parameters.get("difficulty")
    return asked is not None and asked.default is asked.empty


def emptied(quota: Tensor, sizes: Tensor) -> list[int]:
    """Returns the classes with samples that keep none."""
    return ((quota == 0) & (sizes > 0)).nonzero().flatten().tolist()


def emptied_in_words(
    found: Sequence[int], names: Sequence[str] | None, count: int, kind: str, remedy: str
) -> str:
    """Returns the warning of the classes, or groups, that keep no sample; `remedy` is what to do besides."""
    said = [f"{k}" if names is None else f"{k} ({names[k]})" for k in found[:10]]
    return (
        f"{len(found)} of {count} {kind} keep no sample, and training continues "
        f"without them: {', '.join(said)}{', ...' if len(found) > 10 else ''}. {remedy}, or raise the density."
    )


def _narrow(target: Tensor) -> Tensor:
    fits = int(target.max()) <= torch.iinfo(torch.int16).max
    return target.to(torch.int16 if fits else torch.int32)


def _check(quota: object, sizes: Tensor, budget: int) -> None:
    """Raises a ValueError unless the user's quota function returned quotas."""
    if not isinstance(quota, Tensor) or quota.shape != sizes.shape or quota.dtype != torch.int64:
        raise ValueError(
            f"`quota` must return int64 [{len(sizes)}], got "
            f"{getattr(quota, 'dtype', type(quota).__name__)} {list(getattr(quota, 'shape', []))}."
        )
    if int(quota.sum()) != budget:
        raise ValueError(f"`quota` must sum to the budget {budget}, got {int(quota.sum())}.")
