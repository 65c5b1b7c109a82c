"""An axis of sparsities, spaced so that 90, 99 and 99.9 % can be told apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lightning_fairprune.figures._sheet import Sheet

AXIS = "sparsity in %, spaced by compression ratio"
# Sparsities that an axis is marked with, those that matter most first.
MARKS = (
    (0.0, 0.9, 0.99, 0.999, 0.9999),
    (0.5, 0.95, 0.98, 0.995, 0.9995),
    (0.8, 0.7, 0.3, 0.97, 0.998),
    (0.1, 0.2, 0.4, 0.6, 0.85, 0.93, 0.96, 0.985, 0.993, 0.997, 0.9998),
)


def in_percent(sparsity: float) -> str:
    """Returns a sparsity in percent with as many decimals as the weights that are left need.

    Example:
        >>> [in_percent(s) for s in (0.0, 0.5625, 0.9, 0.99953, 1.0)]
        ['0', '56.2', '90', '99.953', '100']
    """
    left = 100 * (1 - sparsity)
    # The tiny addend: 1 - 0.99 is a little more than 0.01, 1 - 0.999 a little less than 0.001.
    decimals = max(1, 1 - math.floor(math.log10(left) + 1e-9)) if left > 0 else 1
    text = f"{100 * sparsity:.{decimals}f}"
    return text.rstrip("0").rstrip(".")


def place(sparsity: float) -> float:
    """Returns where a sparsity below 1 lies: the logarithm of the compression ratio."""
    return math.log10(1 / (1 - sparsity))


def mark(sheet: Sheet, axis: Any, places: Sequence[float]) -> None:
    """Writes sparsities below an axis whose limits are set: round ones that have room, else those at `places`."""
    low, high = axis.get_xlim()
    inches = sheet.size_of(axis)[0] / (high - low)
    halves: dict[float, float] = {}  # of the width of each text

    def add(at: float) -> None:
        half = sheet.measure(_text(at)) / 2 + 0.04
        if low <= at <= high and all(abs(p - at) * inches > h + half for p, h in halves.items()):
            halves[at] = half

    for sparsity in (s for marks in MARKS for s in marks):
        add(place(sparsity))
    if len(halves) < 2:
        halves.clear()
        add(min(places))
        add(max(places))
    axis.set_xticks(sorted(halves), [_text(at) for at in sorted(halves)])


def _text(at: float) -> str:
    return in_percent(1 - 10**-at)
