"""A claim of a paper, its comparison with our numbers, and both as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Number:
    """One comparison at one density or sparsity: means over the seeds that both sides have."""

    what: str
    at: str
    ours: float
    other: float
    seeds: int  # in which the claim holds
    of: int  # that both have
    holds: bool  # for the means


@dataclass(frozen=True, slots=True)
class Claim:
    """One claim of a paper, with our numbers; without any if the grid lacks the methods."""

    paper: str
    text: str
    numbers: tuple[Number, ...]

    @property
    def verdict(self) -> Literal["holds", "holds in part", "does not hold", "not tested"]:
        """The verdict of all comparisons of means over seeds."""
        if not self.numbers:
            return "not tested"
        if all(number.holds for number in self.numbers):
            return "holds"
        return "holds in part" if any(n.holds for n in self.numbers) else "does not hold"


def compared(
    what: str,
    at: str,
    ours: Mapping[int, float],
    other: Mapping[int, float],
    *,
    below: bool = False,
    slack: float = 0.0,
) -> list[Number]:
    """Compares the values by seed of two sides over their common seeds, if there are any.

    The claim is that `ours` is higher, with `below` lower, with a tolerance of `slack`.

    Example:
        >>> (found,) = compared("a above b", "density 0.3", {0: 0.5, 1: 0.7}, {0: 0.6, 1: 0.4})
        >>> round(found.ours, 3), found.other, found.seeds, found.of, found.holds
        (0.6, 0.5, 1, 2, True)
    """
    common = ours.keys() & other.keys()
    if not common:
        return []
    sign = -1.0 if below else 1.0
    left, right = (sum(side[s] for s in common) / len(common) for side in (ours, other))
    wins = sum(sign * (ours[s] - other[s]) + slack > 0 for s in common)
    return [Number(what, at, left, right, wins, len(common), sign * (left - right) + slack > 0)]


def markdown(claims: Sequence[Claim], name: str) -> str:
    """Returns the claims as text: for each paper a table of verdicts, then the numbers."""
    lines = [
        f"# Claims of the papers, tested by {name}",
        "",
        "A claim holds if the means over the seeds say so in every comparison, in part if they do in some;",
        "the column 'seeds' says in how many of them it does.",
    ]
    for paper in dict.fromkeys(claim.paper for claim in claims):
        own = [claim for claim in claims if claim.paper == paper]
        lines += ["", f"## {paper}", ""]
        lines += ["| claim | verdict | comparisons that hold |", "|---|---|--:|"]
        for claim in own:
            held = sum(number.holds for number in claim.numbers)
            lines.append(f"| {claim.text} | {claim.verdict} | {held} of {len(claim.numbers)} |")
        for claim in own:
            if claim.numbers:
                lines += ["", f"### {claim.text}", ""]
                lines += [
                    "| comparison | at | ours | other | seeds | |",
                    "|---|---|--:|--:|--:|---|",
                ]
            for n in claim.numbers:
                lines.append(
                    f"| {n.what} | {n.at} | {n.ours:.3f} | {n.other:.3f} | {n.seeds} of {n.of} | "
                    f"{'holds' if n.holds else 'does not hold'} |"
                )
    return "\n".join(lines) + "\n"
