"""The claims of the papers, each with our numbers and a verdict."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

from lightning_fairprune import criteria, geometry, quotas
from lightning_fairprune.experiments._claim import Claim, Number, compared
from lightning_fairprune.experiments._parts import Method
from lightning_fairprune.experiments._records import Experiment
from lightning_fairprune.experiments._results import ByLevel, Row, by_density, by_sparsity, ratio

DROP = "DRoP: Vysogorets, Ahuja and Kempe, ICLR 2025"
DISTORTION = "Recall distortion: Good et al., NeurIPS 2022"
# The paper calls the loss of average accuracy tolerable and does not say what would be too much.
TOLERABLE = 0.05
# The other has ratios of 2, 4, 10, 20 and 50; up to 2.5 they count as low, from 9.5 on as high.
LOW, HIGH = 2.5, 9.5


def claims_of(experiment: Experiment, rows: Sequence[Row]) -> list[Claim]:
    """Compares the methods of the claims, found by their settings and not by their names.

    Args:
        experiment: with `densities` for the claims on pruning data, `weights` for those on weights.
        rows: of the finished models.

    Example:
        >>> from lightning_fairprune.experiments import build, read_config
        >>> [claim.verdict for claim in claims_of(build(read_config("digits")), [])][:2]
        ['not tested', 'not tested']
    """
    found = _drop_claims(experiment, rows) if experiment.densities else []
    return found + (_distortion_claims(experiment, rows) if experiment.weights else [])


def _drop_claims(experiment: Experiment, rows: Sequence[Row]) -> list[Claim]:
    by_level, methods = by_density(rows), experiment.methods
    random = _first(methods, Method())
    random_drop = _first(methods, Method(quota=quotas.drop))
    full = next((name for name, b in experiment.baselines.items() if b.weighting is None), None)
    strategies = [name for name, m in methods.items() if m.score is not None and m.quota is None]
    pairs = [(name, partner) for name in strategies if (partner := _under_drop(methods, name))]
    others = [name for name in methods if name != random_drop]
    tests = {
        "Pruning by a score lowers the worst-class recall below that of random pruning.": _each(
            by_level, [(s, random, "worst", 0.0) for s in strategies], below=True
        ),
        "Random pruning under DRoP quotas has the best worst-class recall of all methods at every "
        "density.": _each(by_level, [(random_drop, other, "worst", 0.0) for other in others]),
        "It improves on the worst-class recall of the full data.": _each(
            by_level, [(random_drop, full, "worst", 0.0)]
        ),
        f"Its average recall falls by a tolerable amount (here: at most {TOLERABLE:g} below random "
        "pruning).": _each(by_level, [(random_drop, random, "average", TOLERABLE)]),
        "DRoP quotas raise the worst-class recall of the other strategies too.": _each(
            by_level, [(drop, alone, "worst", 0.0) for alone, drop in pairs]
        ),
    }
    return [Claim(DROP, text, numbers) for text, numbers in tests.items()]


def _first(methods: Mapping[str, Method], wanted: Method) -> str | None:
    return next((name for name, method in methods.items() if method == wanted), None)


def _under_drop(methods: Mapping[str, Method], name: str) -> str | None:
    alone = methods[name]
    score = alone.score
    if score is geometry.k_center_distance:  # under quotas it restarts in every class
        score = geometry.class_k_center
    return _first(methods, Method(score, alone.keep, quotas.drop, alone.score_on, alone.at))


def _each(
    rows: ByLevel,
    pairs: Sequence[tuple[str | None, str | None, str, float]],
    *,
    below: bool = False,
) -> tuple[Number, ...]:
    return tuple(
        number
        for ours, other, measure, slack in pairs
        if ours is not None and other is not None
        for number in _compared(rows, ours, other, measure, slack, below)
    )


def _compared(
    rows: ByLevel, ours: str, other: str, measure: str, slack: float, below: bool
) -> Iterator[Number]:
    what = f"{measure} of {ours} {'below' if below else 'against'} {other}"
    for (name, density), own in rows.items():
        against = rows.get((other, density)) or rows.get((other, 1.0))
        if name == ours and against:
            left, right = (
                {row.seed: float(getattr(row, measure)) for row in side} for side in (own, against)
            )
            yield from compared(what, f"density {density:g}", left, right, below=below, slack=slack)


# ------------------------------------------------------------------------------- recall distortion

# alpha by method, sparsity (rising) and seed.
Alphas = Mapping[str, Mapping[float, Mapping[int, float]]]


def _distortion_claims(experiment: Experiment, rows: Sequence[Row]) -> list[Claim]:
    """Compares the criteria of the claims, pruned in one step."""
    alpha = _alphas(rows)
    used = {name: m.prune().settings.criterion for name, m in experiment.weights.items()}
    once = {name for name, m in experiment.weights.items() if m.start == m.end == 0}
    magnitude, gradient, undecayed, random = (
        next((name for name, criterion in used.items() if criterion is c and name in once), None)
        for c in (criteria.magnitude, criteria.gradient, criteria.undecayed, criteria.random)
    )
    others = [name for name in alpha if used.get(name) is not criteria.random]
    tests = {
        "At a ratio of 2 differences between classes shrink: alpha is below 1 (all but random "
        "pruning).": _below_one(alpha, others, most=LOW),
        "The higher the ratio, the more they grow (all but random pruning).": _rising(
            alpha, others
        ),
        "At high ratios (here: from 10 on) magnitude has a lower alpha than gradient.": _lower(
            alpha, magnitude, gradient, least=HIGH
        ),
        "Undecayed has a lower alpha than magnitude at every ratio.": _lower(
            alpha, undecayed, magnitude
        ),
        "Random pruning has an alpha below 1 at every ratio: a loss of accuracy alone intensifies "
        "nothing.": _below_one(alpha, [random] if random else []),
    }
    return [Claim(DISTORTION, text, numbers) for text, numbers in tests.items()]


def _alphas(rows: Sequence[Row]) -> Alphas:
    found: dict[str, dict[float, dict[int, float]]] = {}
    by_level = by_sparsity(rows)
    for name, sparsity in sorted(by_level, key=lambda key: key[1]):
        known = {row.seed: row.alpha for row in by_level[name, sparsity] if row.alpha is not None}
        found.setdefault(name, {})[sparsity] = known
    return found


def _below_one(alpha: Alphas, names: Sequence[str], most: float = math.inf) -> tuple[Number, ...]:
    return tuple(
        number
        for name in names
        for at, values in alpha.get(name, {}).items()
        if ratio(at) <= most
        for number in compared(
            f"alpha of {name} below 1", _at(at), values, dict.fromkeys(values, 1.0), below=True
        )
    )


def _rising(alpha: Alphas, names: Sequence[str]) -> tuple[Number, ...]:
    return tuple(
        number
        for name in names
        for (low, less), (high, more) in itertools.pairwise(alpha[name].items())
        for number in compared(f"alpha of {name} above that at {_at(low)}", _at(high), more, less)
    )


def _lower(
    alpha: Alphas, ours: str | None, other: str | None, least: float = 0.0
) -> tuple[Number, ...]:
    against = alpha.get(other or "", {})
    what = f"alpha of {ours} below {other}"
    return tuple(
        number
        for at, values in alpha.get(ours or "", {}).items()
        if ratio(at) >= least and at in against
        for number in compared(what, _at(at), values, against[at], below=True)
    )


def _at(sparsity: float) -> str:
    return f"sparsity {sparsity:g}"
