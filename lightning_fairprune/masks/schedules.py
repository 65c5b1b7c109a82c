"""When to prune how much: the sparsity after each of n prunings.

All have the signature ``(sparsity, steps, *, initial=0.0) -> tuple``; the n results never fall, and the last is
`sparsity` to the last bit.
"""

from __future__ import annotations

__all__ = ["cubic", "geometric", "one_shot"]


def one_shot(sparsity: float, steps: int, *, initial: float = 0.0) -> tuple[float, ...]:
    """Return the target at once; later prunings have nothing left to do.

    Args:
        sparsity: Target, fraction of weights removed, in [0, 1).
        steps: Number of prunings n, at least 1.
        initial: Sparsity before the first, at most the target.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> one_shot(0.9, 3)
        (0.9, 0.9, 0.9)
    """
    _check(sparsity, steps, initial)
    return (sparsity,) * steps


def geometric(sparsity: float, steps: int, *, initial: float = 0.0) -> tuple[float, ...]:
    r"""Return a sparsity that removes the same fraction of the remaining weights each time.

    :math:`1 - s_i = (1 - s_0) \left(\frac{1 - s_n}{1 - s_0}\right)^{i / n}`, the iterative pruning of
    lottery tickets (Frankle and Carbin, ICLR 2019, arXiv:1803.03635), which removes a fifth at a time.

    Arguments and result are those of :func:`one_shot`, `sparsity` as :math:`s_n` and `initial` as :math:`s_0`.

    Example:
        >>> geometric(0.75, 2)  # half of the weights, then half of the rest
        (0.5, 0.75)
    """
    _check(sparsity, steps, initial)
    ratio = (1 - sparsity) / (1 - initial)
    between = [1 - (1 - initial) * ratio ** (i / steps) for i in range(1, steps)]
    return _rising(between, sparsity, initial)


def cubic(sparsity: float, steps: int, *, initial: float = 0.0) -> tuple[float, ...]:
    r"""Return a sparsity that rises fast at first, while there is much to choose from, then slowly.

    :math:`s_i = s_n + (s_0 - s_n) (1 - i / n)^3` for :math:`i = 1, \dots, n` (Zhu and Gupta, ICLR 2018
    workshop, arXiv:1710.01878, equation 1, whose :math:`t_0` is one interval before the first pruning).

    Arguments and result are those of :func:`one_shot`, `sparsity` as :math:`s_n` and `initial` as :math:`s_0`.

    Example:
        >>> cubic(0.5, 2)  # 0.5 (1 - 1/8)
        (0.4375, 0.5)
    """
    _check(sparsity, steps, initial)
    between = [sparsity + (initial - sparsity) * (1 - i / steps) ** 3 for i in range(1, steps)]
    return _rising(between, sparsity, initial)


def _rising(between: list[float], sparsity: float, initial: float) -> tuple[float, ...]:
    # Rounding must not carry a step past the target or below the start.
    return (*(min(max(s, initial), sparsity) for s in between), sparsity)


def _check(sparsity: float, steps: int, initial: float) -> None:
    if isinstance(sparsity, bool) or not 0 <= sparsity < 1:
        raise ValueError(f"`sparsity` must be in [0, 1), got {sparsity}.")
    if isinstance(steps, bool) or steps < 1:
        raise ValueError(f"`steps` must be at least 1 pruning, got {steps}.")
    if not 0 <= initial <= sparsity:
        raise ValueError(f"`initial` must be in [0, {sparsity}], got {initial}.")
