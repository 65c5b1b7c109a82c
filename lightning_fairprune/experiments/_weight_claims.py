"""The claims of the paper on recall distortion, each with our numbers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lightning_fairprune import criteria
from lightning_fairprune.experiments._claim import Claim, Number, compared
from lightning_fairprune.experiments._parts import WeightMethod
from lightning_fairprune.experiments._records import Experiment
from lightning_fairprune.experiments._results import Row, by_sparsity, ratio

__all__ = ["distortion_claims"]

PAPER = "Recall distortion: Good et al., NeurIPS 2022"
# The paper has ratios of 2, 4, 10, 20 and 50: which of them are low, and which are high.
LOW, HIGH = 2.5, 9.5

# By method: by sparsity, rising: by seed: alpha.
Alphas = Mapping[str, Mapping[float, Mapping[int, float]]]


def distortion_claims(experiment: Experiment, rows: Sequence[Row]) -> list[Claim]:
    """Compares the criteria that the claims are about, pruned at once.

    Args:
        experiment: whose `weights`.
        rows: of the models that are finished.
    """
    alpha = _alphas(rows)
    magnitude, gradient, undecayed, random = (
        _first(experiment.weights, criterion)
        for criterion in (
            criteria.magnitude, criteria.gradient, criteria.undecayed, criteria.random
        )
    )  # fmt: skip
    chance = [
        n for n, m in experiment.weights.items() if m.prune().settings.criterion is criteria.random
    ]
    others = [name for name in alpha if name not in chance]
    return [
        Claim(
            PAPER,
            "At a ratio of 2 differences between classes shrink: alpha is below 1 (all but random pruning).",
            _below_one(alpha, others, most=LOW),
        ),
        Claim(
            PAPER,
            "The higher the ratio, the more they grow (all but random pruning).",
            _rising(alpha, others),
        ),
        Claim(
            PAPER,
            "At high ratios (here: from 10 on) magnitude has a lower alpha than gradient.",
            _lower(alpha, magnitude, gradient, least=HIGH),
        ),
        Claim(
            PAPER,
            "Undecayed has a lower alpha than magnitude at every ratio.",
            _lower(alpha, undecayed, magnitude),
        ),
        Claim(
            PAPER,
            "Random pruning has an alpha below 1 at every ratio: a loss of accuracy alone intensifies nothing.",
            _below_one(alpha, [random] if random else []),
        ),
    ]


def _alphas(rows: Sequence[Row]) -> Alphas:
    found: dict[str, dict[float, dict[int, float]]] = {}
    groups = by_sparsity(rows)
    for name, sparsity in sorted(groups, key=lambda key: key[1]):
        known = {row.seed: row.alpha for row in groups[name, sparsity] if row.alpha is not None}
        found.setdefault(name, {})[sparsity] = known
    return found


def _first(weights: Mapping[str, WeightMethod], criterion: Callable[..., Any]) -> str | None:
    return next(
        (
            name
            for name, method in weights.items()
            if method.prune().settings.criterion is criterion and method.start == method.end == 0
        ),
        None,
    )


def _below_one(
    alpha: Alphas, names: Sequence[str], most: float = float("inf")
) -> tuple[Number, ...]:
    return tuple(
        number
        for name in names
        for sparsity, values in alpha.get(name, {}).items()
        if ratio(sparsity) <= most
        for number in compared(
            f"alpha of {name} below 1",
            _at(sparsity),
            values,
            dict.fromkeys(values, 1.0),
            below=True,
        )
    )


def _rising(alpha: Alphas, names: Sequence[str]) -> tuple[Number, ...]:
    return tuple(
        number
        for name in names
        for low, high in itertools.pairwise(alpha[name])
        for number in compared(
            f"alpha of {name} above that at {_at(low)}",
            _at(high),
            alpha[name][high],
            alpha[name][low],
        )
    )


def _lower(
    alpha: Alphas, ours: str | None, other: str | None, least: float = 0.0
) -> tuple[Number, ...]:
    if ours is None or other is None:
        return ()
    against = alpha.get(other, {})
    return tuple(
        number
        for sparsity, values in alpha.get(ours, {}).items()
        if ratio(sparsity) >= least and sparsity in against
        for number in compared(
            f"alpha of {ours} below {other}", _at(sparsity), values, against[sparsity], below=True
        )
    )


def _at(sparsity: float) -> str:
    return f"sparsity {sparsity:g}"
