"""The claims of the papers, each with our numbers and a verdict; here those of the DRoP paper."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from lightning_fairprune import geometry, quotas
from lightning_fairprune.experiments._claim import Claim, Number, compared
from lightning_fairprune.experiments._parts import Method
from lightning_fairprune.experiments._records import Experiment
from lightning_fairprune.experiments._results import Row, by_setting
from lightning_fairprune.experiments._weight_claims import distortion_claims

__all__ = ["claims_of"]

PAPER = "DRoP: Vysogorets, Ahuja and Kempe, ICLR 2025"
# The paper calls the loss of average accuracy tolerable and does not say what would be too much.
TOLERABLE = 0.05

Groups = Mapping[tuple[str, float], Sequence[Row]]


def claims_of(experiment: Experiment, rows: Sequence[Row]) -> list[Claim]:
    """Compares the methods that the claims are about, known by their settings and not by their names.

    Args:
        experiment: whose methods. Claims on pruning data need `densities`, those on weights `weights`.
        rows: of the models that are finished.

    Example:
        >>> from lightning_fairprune.experiments import build, read_config
        >>> [claim.verdict for claim in claims_of(build(read_config("digits")), [])][:2]
        ['not tested', 'not tested']
    """
    found = _drop_claims(experiment, rows) if experiment.densities else []
    return found + (distortion_claims(experiment, rows) if experiment.weights else [])


def _drop_claims(experiment: Experiment, rows: Sequence[Row]) -> list[Claim]:
    groups, methods = by_setting(rows), experiment.methods
    random = _first(methods, Method())
    random_drop = _first(methods, Method(quota=quotas.drop))
    full = next((name for name, b in experiment.baselines.items() if b.weighting is None), None)
    strategies = [name for name, m in methods.items() if m.score is not None and m.quota is None]
    pairs = [(name, partner) for name in strategies if (partner := _under_drop(methods, name))]
    others = [name for name in methods if name != random_drop]
    return [
        Claim(
            PAPER,
            "Pruning by a score lowers the worst-class recall below that of random pruning.",
            _each(groups, [(s, random, "worst", 0.0) for s in strategies], below=True),
        ),
        Claim(
            PAPER,
            "Random pruning under DRoP quotas has the best worst-class recall of all methods at every density.",
            _each(groups, [(random_drop, other, "worst", 0.0) for other in others]),
        ),
        Claim(
            PAPER,
            "It improves on the worst-class recall of the full data.",
            _each(groups, [(random_drop, full, "worst", 0.0)]),
        ),
        Claim(
            PAPER,
            "Its average recall falls by a tolerable amount (here: at most "
            f"{TOLERABLE:g} below random pruning).",
            _each(groups, [(random_drop, random, "average", TOLERABLE)]),
        ),
        Claim(
            PAPER,
            "DRoP quotas raise the worst-class recall of the other strategies too.",
            _each(groups, [(drop, alone, "worst", 0.0) for alone, drop in pairs]),
        ),
    ]


def _first(methods: Mapping[str, Method], wanted: Method) -> str | None:
    return next((name for name, method in methods.items() if method == wanted), None)


def _under_drop(methods: Mapping[str, Method], name: str) -> str | None:
    alone = methods[name]
    score = alone.score
    if score is geometry.k_center_distance:  # under quotas it begins anew in every class
        score = geometry.class_k_center
    return _first(methods, Method(score, alone.keep, quotas.drop, alone.score_on, alone.at))


def _each(
    groups: Groups,
    pairs: Sequence[tuple[str | None, str | None, str, float]],
    *,
    below: bool = False,
) -> tuple[Number, ...]:
    return tuple(
        number
        for ours, other, measure, slack in pairs
        if ours is not None and other is not None
        for number in _compared(groups, ours, other, measure, slack, below)
    )


def _compared(
    groups: Groups, ours: str, other: str, measure: str, slack: float, below: bool
) -> Iterator[Number]:
    what = f"{measure} of {ours} {'below' if below else 'against'} {other}"
    for (name, density), rows in groups.items():
        against = groups.get((other, density)) or groups.get((other, 1.0))
        if name == ours and against:
            left, right = (
                {row.seed: float(getattr(row, measure)) for row in side} for side in (rows, against)
            )
            yield from compared(what, f"density {density:g}", left, right, below=below, slack=slack)
