"""Slow and obvious versions of what quotas and selection compute."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction


def seat_list(
    weights: Sequence[float], capacity: Sequence[int], budget: int, floor: Sequence[int]
) -> list[int]:
    """Write down every seat with its priority, sort, take the first `budget`."""
    seats = []
    for k, (weight, most) in enumerate(zip(weights, capacity, strict=True)):
        seats += [
            (j >= floor[k], -weight / (2 * j + 1), Fraction(2 * j + 1, most), k)
            for j in range(most)
        ]
    quota = [0] * len(weights)
    for *_, k in sorted(seats)[:budget]:
        quota[k] += 1
    return quota


def water_filling(shares: Sequence[float], capacity: Sequence[int], budget: float) -> list[float]:
    """min(capacity, c * share) with the c that meets the budget, in real numbers."""
    low, high = 0.0, max(n / s for n, s in zip(capacity, shares, strict=True) if s > 0)
    for _ in range(200):
        c = (low + high) / 2
        total = sum(min(n, c * s) for n, s in zip(capacity, shares, strict=True))
        low, high = (c, high) if total < budget else (low, c)
    return [min(n, c * s) for n, s in zip(capacity, shares, strict=True)]


def passes(sizes: Sequence[int], recall: Sequence[float], budget: float) -> list[float]:
    """DRoP as the paper describes it: hand out, cut off what exceeds a class, hand that out again."""
    density = [0.0] * len(sizes)
    open_classes, left = set(range(len(sizes))), float(budget)
    while left > 1e-9 * budget:
        scale = left / sum(sizes[k] * (1 - recall[k]) for k in open_classes)
        left = 0.0
        for k in list(open_classes):
            density[k] += scale * (1 - recall[k])
            if density[k] > 1:
                left += (density[k] - 1) * sizes[k]
                density[k] = 1.0
                open_classes.discard(k)
    return [d * n for d, n in zip(density, sizes, strict=True)]


def whole_shares(recall: Sequence[float], budget: int) -> list[int]:
    """The shares of the budget by error, cut to whole samples: the published code, no class full."""
    errors = [Fraction(1) - Fraction(r) for r in recall]
    return [int(budget * error / sum(errors)) for error in errors]


def level(sizes: Sequence[int], budget: int) -> list[int]:
    """One sample at a time to the stratum that has fewest, the larger first, then the lower index."""
    share = [0] * len(sizes)
    for _ in range(budget):
        able = [s for s in range(len(sizes)) if share[s] < sizes[s]]
        share[min(able, key=lambda s: (share[s], -sizes[s], s))] += 1
    return share


def class_difficulty(
    score: Sequence[float], target: Sequence[int], winsorise: float, num_classes: int
) -> list[float]:
    """Sort each class, write the neighbour over every value of its two ends, average."""
    replaced = []
    for k in range(num_classes):
        values = sorted(s for s, label in zip(score, target, strict=True) if label == k)
        ends = int(winsorise * len(values))
        for i in range(ends):
            values[i], values[-1 - i] = values[ends], values[-1 - ends]
        replaced.append(values)
    lowest = min([0.0, *(v for values in replaced for v in values)])
    return [sum(v - lowest for v in vs) / len(vs) if vs else float("nan") for vs in replaced]


def by_score(
    target: Sequence[int], score: Sequence[float], quota: Sequence[int], hard: bool
) -> list[int]:
    """Sort the samples of each class by score, take the first ones."""
    kept = []
    for k, count in enumerate(quota):
        members = [i for i, label in enumerate(target) if label == k]
        members.sort(key=lambda i: (-score[i] if hard else score[i], i))
        kept += members[:count]
    return sorted(kept)
