"""The exact upper bound of the difference of two shares of the same samples.

Of n samples B went from right to wrong and C from wrong to right, with probabilities p and q; the loss is p - q. Outcomes
are ordered by T(B, C) = B - C + z sqrt(B + C + z^2 / 4), an upper bound of n (p - q) if B and C were Poisson. The bound
of Buehler (1957) for this order is the largest loss at which an outcome that is ordered no higher than the observed one
still has a probability of more than 1 - level, for the most favourable p + q. It is the smallest exact bound that is
increasing in T (Lloyd and Kabaila, 2003). T falls with C and rises with B, so the probability falls with the loss, and
a root is the only one.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Shares p + q that are tried, as parts of the way from |loss| to 1: where few samples change, probabilities vary fastest.
_ROOTS, _POWER = np.linspace(0, 1, 33), 2.5
_NEAR = 1 / 32  # of a root, where the largest probability is followed
_FINER = 2  # times that the neighbourhood of the largest is looked at
_PRECISION = 1e-6  # of the bound, which is rounded up


@lru_cache(maxsize=1 << 14)
def upper_loss(lost: int, gained: int, n: int, alpha: float) -> float:
    """Returns the bound at level 1 - `alpha`, with `lost` + `gained` <= `n` and 0 < `alpha` < 1/2."""
    from scipy import optimize

    z = _normal(alpha)
    limit = float(rank(lost, gained, alpha))
    low, most = (lost - gained) / n, 1 - _PRECISION
    bound = min(most, (limit + z * z / 2) / n)
    # At a few shares a root is found soon; only all of them say whether it is the bound, or where it is exceeded.
    while True:
        where, largest = _largest(bound, n, limit, z)
        if largest <= alpha:
            break
        if bound >= most:
            return 1.0
        low, bound = bound, min(most, bound + max(bound - low, 1 / n))

    def excess(loss: float) -> float:
        return float(_probability(loss, _shares(loss, near), n, limit, z).max()) - alpha

    low, high = -most, bound
    while True:
        near = np.append(np.linspace(max(0.0, where - _NEAR), min(1.0, where + _NEAR), 6), where)
        if excess(low) <= 0:
            return min(1.0, low + _PRECISION)
        root = float(optimize.brentq(excess, low, high, xtol=_PRECISION))
        where, largest = _largest(root, n, limit, z)
        if largest <= alpha * (1 + 1e-4) or root - low < _PRECISION:
            return min(1.0, root + _PRECISION)
        low = root


def probability_of_less(lost: int, gained: int, n: int, loss: float, alpha: float) -> float:
    """Returns the p-value of "the loss is at least `loss`", in the order for `alpha`."""
    return min(1.0, _largest(loss, n, float(rank(lost, gained, alpha)), _normal(alpha))[1])


def rank(lost: Any, gained: Any, alpha: float) -> Any:
    """Returns T of arrays of outcomes: of equally many samples, the bound rises with it."""
    z = _normal(alpha)
    return lost - gained + z * np.sqrt(lost + gained + z * z / 4)


def _largest(loss: float, n: int, limit: float, z: float) -> tuple[float, float]:
    """Returns at which p + q an outcome with T <= `limit` is most probable at p - q = `loss`, and how probable.

    Where: as a root of the part of the way from |loss| to 1.
    """
    roots = _ROOTS
    where, best = 0.0, -1.0
    for _ in range(1 + _FINER):
        found = _probability(loss, _shares(loss, roots), n, limit, z)
        i = int(found.argmax())
        if found[i] > best:
            where, best = float(roots[i]), float(found[i])
        roots = np.linspace(roots[max(i - 1, 0)], roots[min(i + 1, len(roots) - 1)], 9)
    return where, best


def _shares(loss: float, roots: Floats) -> Floats:
    return abs(loss) + (1 - abs(loss)) * roots**_POWER


def _normal(alpha: float) -> float:
    from scipy import special

    return float(-special.ndtri(alpha))


def _probability(loss: float, changed: Floats, n: int, limit: float, z: float) -> Floats:
    """Returns P(T <= limit) for each p + q of `changed`: the sum over M = B + C, given which B is binomial."""
    from scipy import special

    spread = float(np.sqrt((n * changed * (1 - changed)).max()))
    reach = int(6.5 * spread + 12)  # beyond it lies less than 1e-9
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
