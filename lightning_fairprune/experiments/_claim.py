"""What a claim of a paper is, how it is compared with our numbers, and how that is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["Claim", "Number", "compared", "markdown"]


@dataclass(frozen=True, slots=True)
class Number:
    """One comparison at one density or sparsity.

    Args:
        what: the two sides, in words.
        at: where, such as ``"density 0.3"``.
        ours: mean over the seeds of the side that the claim is about.
        other: of the side that it is compared with.
        seeds: in how many of the seeds that both have the claim holds.
        of: how many seeds both have.
        holds: whether it holds for the means.
    """

    what: str
    at: str
    ours: float
    other: float
    seeds: int
    of: int
    holds: bool


@dataclass(frozen=True, slots=True)
class Claim:
    """One claim.

    Args:
        paper: that makes it.
        text: what the paper says.
        numbers: ours; none if the grid lacks the methods.
    """

    paper: str
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


def compared(
    what: str,
    at: str,
    ours: Mapping[int, float],
    other: Mapping[int, float],
    *,
    below: bool = False,
    slack: float = 0.0,
) -> list[Number]:
    """Compares two sides over the seeds that both have.

    Args:
        what: the two sides, in words.
        at: where.
        ours: value by seed of the side that the claim is about.
        other: of the other.
        below: whether the claim says that ours is lower; else higher.
        slack: by how much it may miss.

    Returns:
        The number; none without a common seed.

    Example:
        >>> (found,) = compared("a above b", "density 0.3", {0: 0.5, 1: 0.7}, {0: 0.6, 1: 0.4})
        >>> round(found.ours, 3), found.other, found.seeds, found.of, found.holds
        (0.6, 0.5, 1, 2, True)
    """
    common = ours.keys() & other.keys()
    if not common:
        return []
    sign = -1.0 if below else 1.0
    left = sum(ours[s] for s in common) / len(common)
    right = sum(other[s] for s in common) / len(common)
    wins = sum(sign * (ours[s] - other[s]) + slack > 0 for s in common)
    return [Number(what, at, left, right, wins, len(common), sign * (left - right) + slack > 0)]


def markdown(claims: Sequence[Claim], name: str) -> str:
    """Returns the claims as text: of each paper a table of verdicts, then the numbers of each."""
    lines = [
        f"# Claims of the papers, tested by {name}",
        "",
        "A claim holds if the means over the seeds say so in every comparison, in part if they do in some;",
        "in how many of the seeds it does stands beside.",
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
                lines += [_line(number) for number in claim.numbers]
    return "\n".join(lines) + "\n"


def _line(number: Number) -> str:
    return (
        f"| {number.what} | {number.at} | {number.ours:.3f} | {number.other:.3f} | "
        f"{number.seeds} of {number.of} | {'holds' if number.holds else 'does not hold'} |"
    )
