"""Did the quotas do better than keeping the class proportions? The command `fairprune check`."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import Tensor

from lightning_fairprune.counts import ClassCounts
from lightning_fairprune.report import _check
from lightning_fairprune.report._read import Paths, read
from lightning_fairprune.report._words import percent, signed
from lightning_fairprune.statistics import summarise, worst_recall_interval

Verdict = Literal["better", "worse", "traded", "not told apart"]


@dataclass(frozen=True, slots=True)
class Difference:
    """A recall of the runs minus that of the others, and its interval."""

    difference: float
    low: float
    high: float

    @property
    def side(self) -> int:
        """1 above 0 beyond noise, -1 below, else 0."""
        return (self.low > 0) - (self.high < 0)


@dataclass(frozen=True, slots=True)
class Check:
    """Runs with quotas against others on the same samples.

    Args:
        data: the evaluation.
        over: what the intervals are over: "seeds", or "samples" for one run on either side.
        runs: how many, and how many others.
        level: of the intervals.
        worst: lowest recall of a class.
        average: mean recall of the classes.
    """

    data: str
    over: Literal["seeds", "samples"]
    runs: tuple[int, int]
    level: float
    worst: Difference
    average: Difference

    @property
    def verdict(self) -> Verdict:
        """Better: worst class or average is higher beyond noise, and neither lower; worse: the reverse; traded: both."""
        sides = {self.worst.side, self.average.side}
        if sides >= {1, -1}:
            return "traded"
        return "better" if 1 in sides else "worse" if -1 in sides else "not told apart"

    @property
    def sentence(self) -> str:
        """The finding, in points."""
        found = {
            "better": "The quotas did better",
            "worse": "The quotas did worse",
            "traded": "The quotas gave up one for the other",
            "not told apart": "The quotas cannot be told from the others",
        }[self.verdict]
        parts = [
            f"{name} {signed(d.difference)} points ({signed(d.low)} to {signed(d.high)})"
            for name, d in (("worst class", self.worst), ("average", self.average))
        ]
        those = (
            "two models" if self.over == "samples" else f"{self.runs[0]} and {self.runs[1]} runs"
        )
        return f"{found}: {', '.join(parts)}; {percent(self.level)} intervals over {self.over}, {those}."


def check(runs: Paths, against: Paths, *, data: str | None = None, level: float = 0.95) -> Check:
    """Says whether runs with quotas did better than others, such as runs that keep the class proportions.

    With two runs or more on either side the intervals are over seeds: t intervals of the mean of the differences where all
    seeds have a partner, else Welch's. With a single run on a side they are over the evaluated samples: of the worst class
    exact and wide (:func:`~lightning_fairprune.statistics.worst_recall_interval`, half of 1 - level for either run), of the
    average a normal approximation.

    What it does not prove: over samples, anything about the recipe, since another seed gives other models; that quotas
    are the cause, unless the others differ in nothing else: same model, density, epochs, schedule. The phases of
    one fit are therefore not compared: the later one has trained for longer. Nor is it free of the choice of data:
    quotas are made from validation recalls, so compare on a test set.

    Args:
        runs: folders of runs with quotas, as for :func:`report`.
        against: folders of runs without.
        data: the evaluation; by default as in :func:`report`.
        level: of the intervals, in (0, 1).

    Raises:
        FileNotFoundError: If a run has no recalls.
        ValueError: If the runs cannot be compared.
    """
    if not 0 < level < 1:
        raise ValueError(f"`level` must be between 0 and 1, got {level:g}.")
    ours, others = read(runs), read(against)
    homes = {run.path.resolve() for run in others}
    if any(run.path.resolve() in homes for run in ours):
        raise ValueError("the runs must differ from those of `against`, got some in both.")
    data = _check.common_data([*ours, *others], data)
    _check.class_names([*ours, *others], data)
    for run in ours:
        for other in others:
            counts = other.history.last(data).counts
            _check.same_support(run, counts, f"the run {str(other.path)!r}", data)
    number = len(ours), len(others)
    counted = [[run.history.last(data).counts for run in side] for side in (ours, others)]
    if min(number) < 2:
        if max(number) > 1:
            raise ValueError(
                f"there must be one run on either side, or two or more, got {number[0]} and {number[1]}: "
                "with seeds on one side alone there is no interval."
            )
        return Check(
            data, "samples", number, level, *_over_samples(counted[0][0], counted[1][0], level)
        )
    seeds = [[run.seed for run in side] for side in (ours, others)]
    known = all(seed is not None for side in seeds for seed in side)
    paired = (
        known
        and len(set(seeds[0])) == number[0]
        and sorted(map(str, seeds[0])) == sorted(map(str, seeds[1]))
    )
    if paired:
        counted[1] = [counted[1][seeds[1].index(seed)] for seed in seeds[0]]
    (worst, average), (worst_of, average_of) = (
        torch.tensor([[c.worst for c in side], [c.mean for c in side]], dtype=torch.float64)
        for side in counted
    )
    found = _over_seeds(worst, worst_of, level, paired)
    rest = _over_seeds(average, average_of, level, paired)
    return Check(data, "seeds", number, level, found, rest)


def _over_seeds(ours: Tensor, others: Tensor, level: float, paired: bool) -> Difference:
    if paired:
        found = summarise(ours - others, level, against=0.0)
        return Difference(found.mean, found.low, found.high)
    difference = float(ours.mean() - others.mean())
    if not (ours.std() + others.std()):
        return Difference(difference, difference, difference)
    from scipy import stats

    tested = stats.ttest_ind(ours.numpy(), others.numpy(), equal_var=False)
    ends = tested.confidence_interval(level)
    return Difference(difference, float(ends.low), float(ends.high))


def _over_samples(
    ours: ClassCounts, others: ClassCounts, level: float
) -> tuple[Difference, Difference]:
    half = 1 - (1 - level) / 2
    (low, high), (low_of, high_of) = (
        worst_recall_interval(c.tp, c.support, half) for c in (ours, others)
    )
    worst = Difference(ours.worst - others.worst, low - high_of, high - low_of)
    known = (ours.support > 0) & (others.support > 0)
    changed = ours.changes(others)
    recall, recall_of = ours.recall[known], others.recall[known]
    n, m = ours.support[known].double(), others.support[known].double()
    # Half a sample more that changed, so that no change is not certainty.
    if changed is not None:
        moved = (changed[0] + changed[1])[known].double() + 0.5
        variance = (moved / n - (recall - recall_of).square()).clamp_min(0) / n
    else:  # of models that agree more often than by chance, more than enough
        variance = (recall * (1 - recall) + 0.5 / n) / n + (
            recall_of * (1 - recall_of) + 0.5 / m
        ) / m
    normal = float(torch.special.ndtri(torch.tensor((1 + level) / 2, dtype=torch.float64)))
    reach = normal * math.sqrt(float(variance.sum())) / int(known.sum())
    mean = float((recall - recall_of).mean())
    return worst, Difference(mean, mean - reach, mean + reach)


def check_main(argv: Sequence[str] | None = None) -> int:
    """Prints what `check` finds; `fairprune check`.

    Returns:
        0, or 1 if the quotas did worse beyond noise or a package is missing.

    Raises:
        SystemExit: With status 2 and a message, if an argument is wrong.
    """
    parser = argparse.ArgumentParser(
        prog="fairprune check",
        description="Say whether runs with quotas did better than others on the same samples; status 1 if they "
        "did worse beyond noise.",
    )
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="folder of a run with quotas, or of its seeds")
    add(
        "--against",
        action="append",
        required=True,
        metavar="RUN",
        help="a run that differs in the quotas alone, or a folder with its seeds",
    )
    add("--data", help="evaluation to compare: test, val, val/1 (test, else val, if all have it)")
    add("--level", type=float, default=0.95, help="level of the intervals (%(default)s)")
    add("--json", action="store_true", help="print the numbers as JSON")
    given = parser.parse_args(argv)
    try:
        found = check(given.runs, given.against, data=given.data, level=given.level)
    except ImportError as error:
        print(error, file=sys.stderr)
        return 1
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    if given.json:
        content = {**asdict(found), "verdict": found.verdict, "sentence": found.sentence}
        print(json.dumps(content, indent=1, allow_nan=False))
    else:
        print(found.sentence)
    return int(found.verdict == "worse")
