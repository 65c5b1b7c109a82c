"""Difficulty scores: one number per sample, computed from its signals over the training epochs.

Every score maps a `Dynamics` to float32 [N]; higher = harder. Each sample's score uses the epochs in which it
was observed and is NaN if there are none. A score raises a ValueError if its signal was not recorded. Sums are
float64, so that samples with equal observations tie, wherever they are in the tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lightning_fairprune.records.dynamics import Dynamics

__all__ = [
    "aum",
    "confidence",
    "dynamic_uncertainty",
    "el2n",
    "entropy",
    "forgetting",
    "loss",
    "margin",
    "tdds",
    "variability",
]

_CHUNK = 4096  # samples converted to float64 at a time: 3 MB for 100 epochs stay in the cache


def el2n(dynamics: Dynamics, *, window: int | None = None) -> Tensor:
    """Return each sample's mean error length over the last epochs in which it was observed.

    The mean over epochs of `||softmax(z) - onehot(y)||_2`: Paul et al., "Deep Learning on a Data Diet"
    (NeurIPS 2021, arXiv 2107.07075). The paper averages one early epoch over several networks; this averages
    one network over epochs. `window=1` is one network at its last epoch.

    Args:
        dynamics: Record with the signal `el2n`.
        window: Number of epochs to average, in [1, E], the last ones in which the sample was observed, or
            all of them if they are fewer; None averages all.

    Returns:
        Scores in [0, sqrt(2)], NaN where never observed, float32, [N].

    Raises:
        ValueError: If `el2n` was not recorded or `window` is out of range.

    Example:
        >>> from lightning_fairprune import Dynamics
        >>> values = torch.tensor([[1.0, 0.5], [0.5, 0.0]])
        >>> seen = Dynamics(target=torch.tensor([0, 1]), signals={"el2n": values})
        >>> el2n(seen), el2n(seen, window=1)
        (tensor([0.7500, 0.2500]), tensor([0.5000, 0.0000]))
    """
    values = dynamics.signal("el2n")
    if window is None:
        return _mean(values)
    if not 1 <= window <= dynamics.num_epochs:
        raise ValueError(
            f"`window` must be between 1 and the {dynamics.num_epochs} recorded epochs, got {window}."
        )
    return _mean(_last(values, dynamics.observed, window))


def forgetting(dynamics: Dynamics) -> Tensor:
    """Return how often each sample was forgotten; E for a sample never predicted right.

    A forgetting event is a right prediction followed by a wrong one at the sample's next observation. Toneva
    et al., "An Empirical Study of Example Forgetting" (ICLR 2019, arXiv 1812.05159) count a sample that was
    never right as forgotten infinitely often. Here it gets the number of epochs E, which is finite and above
    every count (at most E / 2). DRoP's published code gives it 0, which makes the hardest samples the easiest.

    Args:
        dynamics: Record with the signal `correct`.

    Returns:
        Whole numbers in [0, E], NaN where never observed, float32, [N].

    Example:
        The first sample is forgotten twice, the second never, and the third is never right.

        >>> from lightning_fairprune import Dynamics
        >>> values = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 1, 0]]).bool()
        >>> forgetting(Dynamics(target=torch.tensor([0, 1, 1]), signals={"correct": values}))
        tensor([2., 0., 4.])
    """
    correct = dynamics.signal("correct")
    count = torch.zeros(dynamics.num_samples, device=correct.device)
    ever = torch.zeros_like(count, dtype=torch.bool)
    last = torch.zeros_like(ever)  # False: wrong before the first observation, so nothing to forget
    for now, seen in zip(correct, dynamics.observed, strict=True):
        count += seen & last & ~now
        last = torch.where(seen, now, last)
        ever |= last
    score = count.masked_fill(~ever, float(dynamics.num_epochs))
    return score.masked_fill(~dynamics.observed.any(0), torch.nan)


def dynamic_uncertainty(dynamics: Dynamics, window: int = 10) -> Tensor:
    r"""Return how much the probability of each sample's true class moves within `window` epochs.

    `U = mean_k U_k` with `U_k = std(p_k, ..., p_{k+J-1})`, the unbiased deviation in a window of J epochs:
    He et al., "Large-scale Dataset Pruning with Dynamic Uncertainty" (CVPR 2024 workshops, arXiv 2306.05175).
    All E - J + 1 complete windows count; the published codes leave out the last one. A window with fewer than
    two observations of the sample is left out. Equal values give exactly 0.

    Args:
        dynamics: Record with the signal `p_true`.
        window: Window length J in epochs, in [2, E].

    Returns:
        Scores in [0, sqrt(1/2)], NaN where no window has two observations, float32, [N].

    Raises:
        ValueError: If `p_true` was not recorded or `window` is out of range.

    Example:
        Windows (.2, .4) and (.4, .4): deviations .2 / sqrt(2) and 0, whose mean is .0707.

        >>> from lightning_fairprune import Dynamics
        >>> values = torch.tensor([[0.2], [0.4], [0.4]])
        >>> seen = Dynamics(target=torch.tensor([0]), signals={"p_true": values})
        >>> dynamic_uncertainty(seen, window=2)
        tensor([0.0707])
    """
    if not 2 <= window <= dynamics.num_epochs:
        raise ValueError(
            f"`window` must be between 2 and the {dynamics.num_epochs} recorded epochs, got {window}."
        )
    return _per_chunk(lambda p: _each_window(p, window).nanmean(0), dynamics.signal("p_true"))


def tdds(dynamics: Dynamics, window: int = 10, decay: float = 0.9) -> Tensor:
    r"""Return how unevenly each sample's prediction moves from epoch to epoch, late windows weighted most.

    `D_t = \sum_c |p_{t+1,c} \ln(p_{t+1,c} / p_{t,c})|` is the move of the softmax between two epochs, `R_k` the
    unbiased deviation of the J - 1 moves in a window of J epochs, and the score their moving average
    `S_k = (1 - decay) S_{k-1} + decay R_k`, divided by the sum of its weights. This is what the published code
    (github zhangxin-xd/Dataset-Pruning-TDDS, with 1e-8 in both logarithms) computes up to a factor that all
    samples share: Zhang et al., "Spanning Training Progress: Temporal Dual-Depth Scoring (TDDS) for Enhanced
    Dataset Pruning" (CVPR 2024, arXiv 2311.13613).

    The signal `move` is `D_t` over all C classes. `DataPruning` records it for this score alone, because it needs the
    softmax of the last epoch and of the running one, in float16: 4 C bytes a sample on the device, 2 MiB for CIFAR-10, 5 GiB
    for ImageNet, and as much in a checkpoint. In a sample's first epoch it is 0 and does not count.

    A move needs two consecutive epochs in which the sample was observed; a window with fewer than two moves is
    left out. With `decay=0.9` the last window has nine tenths of the weight.

    Args:
        dynamics: Record with the signal `move`, [E, N]: row e is the move from epoch e - 1 to epoch e.
        window: Window length J in epochs, in [3, E].
        decay: Weight of a window against all before it, in (0, 1].

    Returns:
        Scores in [0, inf), in nats, NaN where no window has two moves, float32, [N].

    Raises:
        ValueError: If `move` was not recorded, or `window` or `decay` is out of range.

    Example:
        Of two classes, (.5, .5) stays and then becomes (.25, .75): moves of 0 and of
        .25 ln 2 + .75 ln 1.5 = .4774, whose deviation is .4774 / sqrt(2).

        >>> from lightning_fairprune import Dynamics
        >>> move = torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, 0.4774]])
        >>> tdds(Dynamics(target=torch.tensor([0, 1]), signals={"move": move}), window=3)
        tensor([0.0000, 0.3376])
    """
    if not 3 <= window <= dynamics.num_epochs:
        raise ValueError(
            f"`window` must be between 3 and the {dynamics.num_epochs} recorded epochs, got {window}."
        )
    if not 0 < decay <= 1:
        raise ValueError(f"`decay` must be above 0 and at most 1, got {decay}.")

    try:
        moves = dynamics.signal("move")
    except ValueError as error:
        raise ValueError(
            f"{error} `tdds` needs how far the softmax of each sample moved over all classes: record it with "
            "`DataPruning(score=scores.tdds)`; what earlier releases recorded for it, two classes, is not the published score."
        ) from None
    observed = dynamics.observed
    both = observed[1:] & observed[:-1]
    moves = moves[1:].masked_fill(~both, torch.nan)
    return _per_chunk(lambda part: _moving_average(_each_window(part, window - 1), decay), moves)


def aum(dynamics: Dynamics) -> Tensor:
    """Return minus each sample's mean margin over the epochs.

    The area under the margin, negated so that higher = harder: Pleiss et al., "Identifying Mislabeled Data
    using the Area Under the Margin Ranking" (NeurIPS 2020, arXiv 2001.10528). The paper stops averaging at the
    first drop of the learning rate; here every recorded epoch counts.

    Args:
        dynamics: Record with the signal `margin`.

    Returns:
        Scores in logit units, NaN where never observed, float32, [N].

    Example:
        >>> from lightning_fairprune import Dynamics
        >>> values = torch.tensor([[1.0, -2.0], [3.0, -4.0]])
        >>> aum(Dynamics(target=torch.tensor([0, 1]), signals={"margin": values}))
        tensor([-2.,  3.])
    """
    return -_mean(dynamics.signal("margin"))


def confidence(dynamics: Dynamics) -> Tensor:
    """Return minus the mean probability of each sample's true class over the epochs.

    The confidence of Swayamdipta et al., "Dataset Cartography" (EMNLP 2020, arXiv 2009.10795), negated so
    that higher = harder.

    Args:
        dynamics: Record with the signal `p_true`.

    Returns:
        Scores in [-1, 0], NaN where never observed, float32, [N].

    Example:
        >>> from lightning_fairprune import Dynamics
        >>> values = torch.tensor([[0.25, 1.0], [0.75, 1.0]])
        >>> confidence(Dynamics(target=torch.tensor([0, 1]), signals={"p_true": values}))
        tensor([-0.5000, -1.0000])
    """
    return -_mean(dynamics.signal("p_true"))


def variability(dynamics: Dynamics) -> Tensor:
    r"""Return the standard deviation of the probability of each sample's true class over the epochs.

    `sqrt(\sum_e (p_e - mean)^2 / E)`, over the epochs in which the sample was observed: Swayamdipta et al.,
    "Dataset Cartography" (EMNLP 2020, arXiv 2009.10795). High means ambiguous; a sample that is always
    wrong scores low. Equal values give exactly 0.

    Args:
        dynamics: Record with the signal `p_true`.

    Returns:
        Scores in [0, 0.5], NaN where never observed, float32, [N].

    Example:
        >>> from lightning_fairprune import Dynamics
        >>> values = torch.tensor([[0.25, 1.0], [0.75, 1.0]])
        >>> variability(Dynamics(target=torch.tensor([0, 1]), signals={"p_true": values}))
        tensor([0.2500, 0.0000])
    """
    return _per_chunk(lambda p: _deviation(p, correction=0), dynamics.signal("p_true"))


def loss(dynamics: Dynamics) -> Tensor:
    """Return each sample's mean cross entropy over the epochs.

    Args:
        dynamics: Record with the signal `loss`.

    Returns:
        Scores in [0, inf), in nats, NaN where never observed, float32, [N].

    Example:
        >>> from lightning_fairprune import Dynamics
        >>> values = torch.tensor([[2.0, 0.5], [1.0, 0.5]])
        >>> loss(Dynamics(target=torch.tensor([0, 1]), signals={"loss": values}))
        tensor([1.5000, 0.5000])
    """
    return _mean(dynamics.signal("loss"))


def margin(dynamics: Dynamics) -> Tensor:
    """Return minus each sample's margin in the last epoch in which it was observed; see `aum`.

    Args:
        dynamics: Record with the signal `margin`.

    Returns:
        Scores in logit units, NaN where never observed, float32, [N].

    Example:
        >>> from lightning_fairprune import Dynamics
        >>> values = torch.tensor([[1.0, -2.0], [3.0, torch.nan]])
        >>> margin(Dynamics(target=torch.tensor([0, 1]), signals={"margin": values}))
        tensor([-3.,  2.])
    """
    return -_mean(_last(dynamics.signal("margin"), dynamics.observed, 1))


def entropy(dynamics: Dynamics) -> Tensor:
    """Return the mean entropy of each sample's softmax over the epochs.

    High means undecided; a sample with a confident wrong prediction scores low.

    Args:
        dynamics: Record with the signal `entropy`.

    Returns:
        Scores in [0, ln C], in nats, NaN where never observed, float32, [N].

    Example:
        >>> from lightning_fairprune import Dynamics
        >>> values = torch.tensor([[0.5, 0.0], [0.25, 0.0]])
        >>> entropy(Dynamics(target=torch.tensor([0, 1]), signals={"entropy": values}))
        tensor([0.3750, 0.0000])
    """
    return _mean(dynamics.signal("entropy"))


def _mean(values: Tensor) -> Tensor:
    return _per_chunk(lambda part: part.nanmean(0), values)


def _per_chunk(formula: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """Apply `formula` ([E, n] -> [n]) in float64, a few thousand samples at a time."""
    parts = torch.split(values, _CHUNK, dim=1)
    return torch.cat([formula(part.double()).float() for part in parts])


def _last(values: Tensor, observed: Tensor, window: int) -> Tensor:
    """Return the values with NaN in all but each sample's last `window` observed epochs."""
    seen_from_here = observed.flip(0).cumsum(0, dtype=torch.int32).flip(0)
    return values.masked_fill(seen_from_here > window, torch.nan)


def _each_window(p: Tensor, window: int) -> Tensor:
    """Return the unbiased deviation in each window of consecutive epochs, [E - window + 1, N]."""
    starts = range(p.shape[0] - window + 1)
    return torch.stack([_deviation(p[k : k + window], correction=1) for k in starts])


def _deviation(p: Tensor, *, correction: int) -> Tensor:
    """Return the deviation over the observed epochs; NaN unless there are more than `correction`."""
    count = p.isfinite().sum(0)
    squares = (p - p.nansum(0) / count).square().nansum(0)
    return (squares / (count - correction).clamp_min(0)).sqrt()


def _moving_average(rows: Tensor, decay: float) -> Tensor:
    """Return the exponential mean of each column over the rows in which it is not NaN."""
    total = torch.zeros_like(rows[0])
    weight = torch.zeros_like(total)
    for row in rows:
        seen = ~row.isnan()
        total = torch.where(seen, (1 - decay) * total + decay * row, total)
        weight = torch.where(seen, (1 - decay) * weight + decay, weight)
    return total / weight
