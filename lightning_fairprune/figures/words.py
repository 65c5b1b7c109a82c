"""Numbers and lists as text in figures and reports."""

from __future__ import annotations

import math
from collections.abc import Sequence


def in_percent(sparsity: float) -> str:
    """Returns a sparsity in percent, with as many decimals as the density needs.

    Example:
        >>> [in_percent(s) for s in (0.0, 0.5625, 0.9, 0.99953, 1.0)]
        ['0', '56.2', '90', '99.953', '100']
    """
    left = 100 * (1 - sparsity)
    # 1e-9, as 1 - 0.99 is a little more than 0.01 and 1 - 0.999 a little less than 0.001.
    decimals = max(1, 1 - math.floor(math.log10(left) + 1e-9)) if left > 0 else 1
    text = f"{100 * sparsity:.{decimals}f}"
    return text.rstrip("0").rstrip(".")


def listed(items: Sequence[str], most: int = 8) -> str:
    """Returns the first of several words, and the number of the others."""
    more = len(items) - most
    return ", ".join(items[:most]) + (f" and {more} more" if more > 0 else "")
