"""The claims of the DRoP paper, each with our numbers and a verdict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from lightning_fairprune import quotas
from lightning_fairprune.experiments._records import Experiment, Method
from lightning_fairprune.experiments._results import Row, by_setting

__all__ = ["Claim", "Number", "claims_of", "markdown"]

# The paper calls the loss of average accuracy tolerable and does not say what would be too much.
TOLERABLE = 0.05

Groups = Mapping[tuple[str, float], Sequence[Row]]


@dataclass(frozen=True, slots=True)
class Number:
    """One comparison at one density.

    Args:
        what: the two sides, in words.
        density: of the comparison.
        ours: mean over the seeds of the side that the claim is about.
        other: of the side that it is compared with.
        seeds: in how many of the seeds that both have the claim holds.
        of: how many seeds both have.
        holds: whether it holds for the means.
    """

    what: str
    density: float
    ours: float
    other: float
    seeds: int
    of: int
    holds: bool


@dataclass(frozen=True, slots=True)
class Claim:
    """One claim.

    Args:
        text: what the paper says.
        numbers: ours; none if the grid lacks the methods.
    """

    text: str
    numbers: tuple[Number, ...]

    @property
    def verdict(self) -> Literal["holds", "holds in part", "does not hold", "not tested"]:
        """Of all comparisons: means over seeds decide."""
        if not self.numbers:
            return "not tested"
        if all(number.holds for number in self.numbers):
            return "holds"
        return "holds in part" if any(n.holds for n in self.numbers) else "does not hold"


def claims_of(experiment: Experiment, rows: Sequence[Row]) -> list[Claim]:
    """Compares the methods that the claims are about, known by their settings and not by their names.

    Args:
        experiment: whose methods.
        rows: of the models that are finished.

    Example:
        >>> from lightning_fairprune.experiments import build, read_config
        >>> [claim.verdict for claim in claims_of(build(read_config("digits")), [])][:2]
        ['not tested', 'not tested']
    """
    groups, methods = by_setting(rows), experiment.methods
    random = _first(methods, Method())
    random_drop = _first(methods, Method(quota=quotas.drop))
    full = next((name for name, b in experiment.baselines.items() if b.weighting is None), None)
    strategies = [name for name, m in methods.items() if m.score is not None and m.quota is None]
    pairs = [(name, partner) for name in strategies if (partner := _under_drop(methods, name))]
    others = [name for name in methods if name != random_drop]
    return [
        Claim(
            "Pruning by a score lowers the worst-class recall below that of random pruning.",
            _each(groups, [(s, random, "worst", 0.0) for s in strategies], below=True),
        ),
        Claim(
            "Random pruning under DRoP quotas has the best worst-class recall of all methods at every density.",
            _each(groups, [(random_drop, other, "worst", 0.0) for other in others]),
        ),
        Claim(
            "It improves on the worst-class recall of the full data.",
            _each(groups, [(random_drop, full, "worst", 0.0)]),
        ),
        Claim(
            "Its average recall falls by a tolerable amount (here: at most "
            f"{TOLERABLE:g} below random pruning).",
            _each(groups, [(random_drop, random, "average", TOLERABLE)]),
        ),
        Claim(
            "DRoP quotas raise the worst-class recall of the other strategies too.",
            _each(groups, [(drop, alone, "worst", 0.0) for alone, drop in pairs]),
        ),
    ]


def _first(methods: Mapping[str, Method], wanted: Method) -> str | None:
    return next((name for name, method in methods.items() if method == wanted), None)


def _under_drop(methods: Mapping[str, Method], name: str) -> str | None:
    alone = methods[name]
    return _first(methods, Method(alone.score, alone.keep, quotas.drop, alone.score_on, alone.at))


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
    for (name, density), rows in groups.items():
        against = groups.get((other, density)) or groups.get((other, 1.0))
        if name != ours or not against:
            continue
        left = {row.seed: float(getattr(row, measure)) for row in rows}
        right = {row.seed: float(getattr(row, measure)) for row in against}
        common = left.keys() & right.keys()
        if not common:
            continue
        sign = -1.0 if below else 1.0
        mean_left = sum(left[s] for s in common) / len(common)
        mean_right = sum(right[s] for s in common) / len(common)
        yield Number(
            f"{measure} of {ours} {'below' if below else 'against'} {other}",
            density,
            mean_left,
            mean_right,
            sum(sign * (left[s] - right[s]) + slack > 0 for s in common),
            len(common),
            sign * (mean_left - mean_right) + slack > 0,
        )


def markdown(claims: Sequence[Claim], name: str) -> str:
    """Returns the claims as text: a table of verdicts, then the numbers of each."""
    lines = [
        f"# Claims of the DRoP paper, tested by {name}",
        "",
        "Vysogorets, Ahuja and Kempe, ICLR 2025. A claim holds if the means over the seeds say so in every",
        "comparison, in part if they do in some; in how many of the seeds it does stands beside.",
        "",
        "| claim | verdict | comparisons that hold |",
        "|---|---|--:|",
    ]
    for claim in claims:
        held = sum(number.holds for number in claim.numbers)
        lines.append(f"| {claim.text} | {claim.verdict} | {held} of {len(claim.numbers)} |")
    for claim in claims:
        if claim.numbers:
            lines += ["", f"## {claim.text}", ""]
            lines += [
                "| comparison | density | ours | other | seeds | |",
                "|---|--:|--:|--:|--:|---|",
            ]
            lines += [_line(number) for number in claim.numbers]
    return "\n".join(lines) + "\n"


def _line(number: Number) -> str:
    return (
        f"| {number.what} | {number.density:g} | {number.ours:.3f} | {number.other:.3f} | "
        f"{number.seeds} of {number.of} | {'holds' if number.holds else 'does not hold'} |"
    )
