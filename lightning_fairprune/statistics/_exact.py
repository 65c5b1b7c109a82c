"""The exact upper bound of the difference of two shares of the same samples.

Of n samples B went from right to wrong and C from wrong to right, with probabilities p and q; the loss is p - q. Outcomes
are ordered by T(B, C) = B - C + z sqrt(B + C + z^2 / 4), an upper bound of n (p - q) if B and C were Poisson. The bound
of Buehler (1957) for this order is the largest loss at which an outcome that is ordered no higher than the observed one
still has a probability of more than 1 - level, for the most favourable p + q. It is the smallest exact bound that is
increasing in T (Lloyd and Kabaila, 2003). T falls with C and rises with B, so the probability falls with the loss, and
a root is the only one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Shares p + q that are tried, as parts of the way from |loss| to 1: where few samples change, probabilities vary fastest.
_GRID = np.linspace(0, 1, 33) ** 2.5
_FINER = 2  # times that the neighbourhood of the best is looked at
_PRECISION = 1e-6  # of the bound, which is rounded up


def upper_loss(lost: int, gained: int, n: int, alpha: float) -> float:
    """Returns the bound at level 1 - `alpha`, with `lost` + `gained` <= `n` and 0 < `alpha` < 1/2."""
    from scipy import optimize

    z = _normal(alpha)
    limit = _order(lost, gained, z)

    def excess(loss: float) -> float:
        return largest_probability(loss, n, limit, z) - alpha

    low = (lost - gained) / n
    high = min(1.0, (limit + z * z / 2 + 1) / n)
    while high < 1 and excess(high) > 0:
        low, high = high, min(1.0, high + (high - low))
    if high == 1 and excess(1 - _PRECISION) > 0:
        return 1.0
    if excess(low) <= 0:  # in a step of a discrete distribution
        low = -1 + _PRECISION
    root = optimize.brentq(excess, low, min(high, 1 - _PRECISION), xtol=_PRECISION)
    return min(1.0, float(root) + _PRECISION)


def probability_of_less(lost: int, gained: int, n: int, loss: float, alpha: float) -> float:
    """Returns the p-value of "the loss is at least `loss`", in the order for `alpha`."""
    z = _normal(alpha)
    return min(1.0, largest_probability(loss, n, _order(lost, gained, z), z))


def largest_probability(loss: float, n: int, limit: float, z: float) -> float:
    """Returns the largest probability over p + q of an outcome with T <= `limit`, at p - q = `loss`."""
    first = abs(loss)
    changed = first + (1 - first) * _GRID
    found = _probability(loss, changed, n, limit, z)
    best = float(found.max())
    for _ in range(_FINER):
        i = int(found.argmax())
        changed = np.linspace(changed[max(i - 1, 0)], changed[min(i + 1, len(changed) - 1)], 9)
        found = _probability(loss, changed, n, limit, z)
        best = max(best, float(found.max()))
    return best


def _order(lost: int, gained: int, z: float) -> float:
    return float(lost - gained + z * np.sqrt(lost + gained + z * z / 4))


def _normal(alpha: float) -> float:
    from scipy import special

    return float(-special.ndtri(alpha))


def _probability(loss: float, changed: Floats, n: int, limit: float, z: float) -> Floats:
    """Returns P(T <= limit) for each p + q of `changed`: the sum over M = B + C, given which B is binomial."""
    from scipy import special

    spread = float(np.sqrt((n * changed * (1 - changed)).max()))
    reach = int(7 * spread + 12)  # beyond it lies less than 1e-10
    m: Any = np.floor(n * changed)[:, None] + np.arange(-reach, reach + 1)
    known = (m >= 0) & (m <= n)
    m = m.clip(0, n)
    share = changed[:, None]
    of_m = special.xlogy(m, share) + special.xlog1py(n - m, -share)
    of_m = np.exp(
        of_m + special.gammaln(n + 1) - special.gammaln(m + 1) - special.gammaln(n - m + 1)
    )
    # The largest B with T <= limit; 1e-9 for the rounding of the outcome that was observed.
    most = np.floor((limit + m - z * np.sqrt(m + z * z / 4)) / 2 + 1e-9)
    with np.errstate(invalid="ignore", divide="ignore"):
        odds = np.where(share > 0, (1 + loss / share) / 2, 0.5).clip(0, 1)
    below = special.bdtr(most.clip(0, m), m.astype(np.int64), np.broadcast_to(odds, m.shape))
    below = np.where(most < 0, 0.0, np.where(most >= m, 1.0, below))
    return np.asarray((of_m * below * known).sum(1), dtype=np.float64)
