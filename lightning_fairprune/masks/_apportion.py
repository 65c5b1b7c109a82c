"""How many weights each layer keeps: integers in proportion to weights that sum exactly."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heapreplace

__all__ = ["apportion"]


def apportion(
    weights: Sequence[float], capacity: Sequence[int], floors: Sequence[int], total: int
) -> list[int]:
    """Returns integers in proportion to `weights` that sum to `total`.

    Webster's divisor rule within ``floors <= result <= capacity``: seats go one by one to the layer
    with the largest ``weight / (seats + 1/2)``, ties to the first. So a larger total shrinks no layer.
    Only the last seats are really dealt out one by one, the others are found by bisection.

    Args:
        weights: positive, one a layer.
        capacity: most that each can have.
        floors: least that each must have.
        total: between the sums of floors and capacity.

    Example:
        >>> apportion([1, 2, 5], [9, 9, 4], [0, 0, 0], 10)  # the third is full at 4; 6 = 2 + 4
        [2, 4, 4]
    """
    layers = list(zip(weights, capacity, floors, strict=True))

    def seats(level: float) -> list[int]:
        return [max(low, min(high, int(level * w + 0.5))) for w, high, low in layers]

    low, high = 0.0, (max(capacity) + 1) / min(weights)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(seats(middle)) <= total else (low, middle)
    result = seats(low)
    # What is left: ties, and what one unit in the last place of the level is worth.
    order = [
        (-w / (n + 0.5), k)
        for k, ((w, most, _), n) in enumerate(zip(layers, result, strict=True))
        if n < most
    ]
    heapify(order)
    for _ in range(total - sum(result)):
        _, k = order[0]
        result[k] += 1
        weight, most, _ = layers[k]
        full = result[k] == most
        heapreplace(order, (0.0 if full else -weight / (result[k] + 0.5), k))
    return result
