"""Slow, obvious versions of signals and scores: plain Python numbers, one sample at a time."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable

Epochs = list[float | None]  # one sample's values, None where it was not observed


def softmax(z: list[float]) -> list[float]:
    top = max(z)
    e = [math.exp(v - top) for v in z]
    return [v / math.fsum(e) for v in e]


def signal_loss(z: list[float], y: int) -> float:
    top = max(z)
    return top + math.log(math.fsum(math.exp(v - top) for v in z)) - z[y]


def signal_el2n(z: list[float], y: int) -> float:
    return math.sqrt(math.fsum((p - (j == y)) ** 2 for j, p in enumerate(softmax(z))))


def signal_p_true(z: list[float], y: int) -> float:
    return softmax(z)[y]


def signal_margin(z: list[float], y: int) -> float:
    return z[y] - max((v for j, v in enumerate(z) if j != y), default=-math.inf)


def signal_rival(z: list[float], y: int) -> float:
    others = [j for j in range(len(z)) if j != y]
    return float(max(others, key=lambda j: z[j], default=0))


def signal_entropy(z: list[float], y: int) -> float:
    return -math.fsum(p * math.log(p) for p in softmax(z) if p > 0)


def signal_correct(z: list[float], y: int) -> bool:
    return z.index(max(z)) == y


def _seen(values: Epochs) -> list[float]:
    return [v for v in values if v is not None]


def mean(values: Epochs) -> float:
    seen = _seen(values)
    return math.fsum(seen) / len(seen) if seen else math.nan


def minus_mean(values: Epochs) -> float:
    return -mean(values)


def minus_last(values: Epochs) -> float:
    seen = _seen(values)
    return -seen[-1] if seen else math.nan


def mean_of_last(values: Epochs, window: int) -> float:
    return mean(_seen(values)[-window:])


def variability(values: Epochs) -> float:
    seen = _seen(values)
    return statistics.pstdev(seen) if seen else math.nan


def dynamic_uncertainty(values: Epochs, window: int) -> float:
    deviations = []
    for start in range(len(values) - window + 1):
        seen = _seen(values[start : start + window])
        if len(seen) >= 2:
            deviations.append(statistics.stdev(seen))
    return math.fsum(deviations) / len(deviations) if deviations else math.nan


def move(before: list[float], after: list[float]) -> float:
    """How far one softmax is from another, as TDDS measures it."""
    return math.fsum(
        abs(b * (math.log(b + 1e-8) - math.log(a + 1e-8)))
        for a, b in zip(before, after, strict=True)
    )


def tdds(values: Epochs, window: int, decay: float) -> float:
    """TDDS of one sample from the moves of its softmax, the first of which is that to the first epoch."""
    deviations = []
    for start in range(len(values) - window + 1):
        pairs = itertools.pairwise(values[start : start + window])
        moves = [b for a, b in pairs if a is not None and b is not None]
        if len(moves) >= 2:
            deviations.append(statistics.stdev(moves))
    if not deviations:
        return math.nan
    weights = [decay * (1 - decay) ** age for age in reversed(range(len(deviations)))]
    return math.fsum(map(math.prod, zip(weights, deviations, strict=True))) / math.fsum(weights)


def published_tdds(logits: list[list[list[float]]], window: int, decay: float) -> list[float]:
    """TDDS of all samples from logits [E][N][C] as its code publishes it: all classes, norms, plain sums."""
    epochs, n = len(logits), len(logits[0])
    scores = []
    for i in range(n):
        p = [softmax(logits[e][i]) for e in range(epochs)]
        total = 0.0
        for k in range(epochs - window + 1):
            moves = [move(p[e], p[e + 1]) for e in range(k, k + window - 1)]
            mean = math.fsum(moves) / len(moves)
            norm = math.sqrt(math.fsum((move - mean) ** 2 for move in moves))
            total += norm * decay * (1 - decay) ** (epochs - window - k)
        scores.append(total)
    return scores


def forgetting(values: Epochs) -> float:
    seen = _seen(values)
    if not seen:
        return math.nan
    if not any(seen):
        return len(values)
    return sum(a == 1 and b == 0 for a, b in itertools.pairwise(seen))


# score -> (the signal that it reads, the oracle of one sample)
SCORES: dict[str, tuple[str, Callable[[Epochs], float]]] = {
    "aum": ("margin", minus_mean),
    "confidence": ("p_true", minus_mean),
    "dynamic_uncertainty": ("p_true", lambda values: dynamic_uncertainty(values, 10)),
    "el2n": ("el2n", mean),
    "entropy": ("entropy", mean),
    "forgetting": ("correct", forgetting),
    "loss": ("loss", mean),
    "margin": ("margin", minus_last),
    "tdds": ("move", lambda values: tdds(values, 10, 0.9)),
    "variability": ("p_true", variability),
}
