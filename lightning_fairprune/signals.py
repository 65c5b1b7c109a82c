"""Signals: per-sample values of one batch, from the logits at one moment of training.

Every signal maps `logits` [B, C] and `target` [B] to one value per sample [B], in float32 (float64 for
float64 logits), without gradient and without a synchronisation of the host with the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property

import torch
from torch import Tensor

__all__ = ["correct", "el2n", "entropy", "loss", "margin", "p_true", "rival"]


def loss(logits: Tensor, target: Tensor) -> Tensor:
    """Return the cross entropy `-ln p_y` of each sample, in nats.

    Args:
        logits: Class scores before the softmax, floating, [B, C].
        target: True classes in [0, C), int64, [B].

    Returns:
        Values in [0, inf), float32 (float64 for float64 logits), [B].

    Raises:
        ValueError: If the shapes do not agree.
        TypeError: If `logits` is not floating or `target` is not integer.

    Example:
        >>> loss(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))  # ln 2
        tensor([0.6931])
    """
    return compute(("loss",), logits, target)["loss"]


def el2n(logits: Tensor, target: Tensor) -> Tensor:
    r"""Return the length of the error vector `||softmax(z) - onehot(y)||_2` of each sample.

    `sqrt((1 - p_y)^2 + \sum_{j != y} p_j^2)`: Paul et al., "Deep Learning on a Data Diet" (NeurIPS 2021,
    arXiv 2107.07075), the EL2N score of one network at one moment. We compute `1 - p_y` as the sum of the
    other probabilities, which is exact close to 0. Arguments and errors are those of `loss`.

    Returns:
        Values in [0, sqrt(2)], float32 (float64 for float64 logits), [B].

    Example:
        >>> el2n(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))  # (.5, .5) is (.5, -.5) off (0, 1)
        tensor([0.7071])
    """
    return compute(("el2n",), logits, target)["el2n"]


def p_true(logits: Tensor, target: Tensor) -> Tensor:
    """Return the probability `p_y` that the softmax gives to the true class of each sample.

    Arguments and errors are those of `loss`.

    Returns:
        Values in [0, 1], float32 (float64 for float64 logits), [B].

    Example:
        >>> p_true(torch.tensor([[1.0, 3.0]]).log(), torch.tensor([1]))  # 3 / (1 + 3)
        tensor([0.7500])
    """
    return compute(("p_true",), logits, target)["p_true"]


def margin(logits: Tensor, target: Tensor) -> Tensor:
    r"""Return the margin of each sample: the logit of the true class minus the highest other one.

    `z_y - \max_{j != y} z_j`: Pleiss et al., "Identifying Mislabeled Data using the Area Under the Margin
    Ranking" (NeurIPS 2020, arXiv 2001.10528). With a single class the margin is inf. Arguments and errors
    are those of `loss`.

    Returns:
        Values in logit units, negative where another class wins, float32 (float64 for float64 logits), [B].

    Example:
        >>> margin(torch.tensor([[1.0, 4.0, 2.0], [1.0, 4.0, 2.0]]), torch.tensor([1, 0]))
        tensor([ 2., -3.])
    """
    return compute(("margin",), logits, target)["margin"]


def entropy(logits: Tensor, target: Tensor) -> Tensor:
    r"""Return the entropy `-\sum_j p_j \ln p_j` of each sample's softmax, in nats, with `0 \ln 0 = 0`.

    Arguments and errors are those of `loss`; the values of `target` do not matter.

    Returns:
        Values in [0, ln C], float32 (float64 for float64 logits), [B].

    Example:
        >>> entropy(torch.tensor([[0.0, 0.0]]), torch.tensor([0]))  # ln 2
        tensor([0.6931])
    """
    return compute(("entropy",), logits, target)["entropy"]


def correct(logits: Tensor, target: Tensor) -> Tensor:
    """Return whether the class with the highest logit is the true one; of equal logits the first counts.

    Arguments and errors are those of `loss`.

    Returns:
        True where the prediction is right, bool, [B].

    Example:
        >>> correct(torch.tensor([[1.0, 4.0], [1.0, 4.0]]), torch.tensor([1, 0]))
        tensor([ True, False])
    """
    return compute(("correct",), logits, target)["correct"]


def rival(logits: Tensor, target: Tensor) -> Tensor:
    r"""Return the rival of each sample: the class with the highest logit other than the true one.

    `\argmax_{j != y} z_j`, the first of equal ones, the class that `margin` compares with. With `loss` and `margin` it gives
    the rival's probability, `exp(-loss - margin)`: `label_errors.wrong_labels` reads the three. With a single class it is 0.
    Arguments and errors are those of `loss`.

    Returns:
        Whole numbers in [0, C), float32 (float64 for float64 logits), [B].

    Example:
        >>> rival(torch.tensor([[1.0, 4.0, 2.0], [1.0, 4.0, 2.0]]), torch.tensor([1, 0]))
        tensor([2., 1.])
    """
    return compute(("rival",), logits, target)["rival"]


def compute(names: Iterable[str], logits: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Return several signals of one batch, with one softmax for all of them.

    Args:
        names: Signals to compute, out of `signals.__all__`.
        logits: As in `loss`.
        target: As in `loss`.

    Returns:
        One tensor [B] per name, in the order of `names`, equal to the result of the function of that name.

    Raises:
        ValueError: If a name is unknown or the shapes do not agree.
        TypeError: If `logits` is not floating or `target` is not integer.

    Example:
        >>> compute(["p_true", "correct"], torch.tensor([[0.0, 0.0]]), torch.tensor([0]))
        {'p_true': tensor([0.5000]), 'correct': tensor([True])}
    """
    batch = _Batch(logits, target)
    try:
        return {name: _FORMULAS[name](batch) for name in names}
    except KeyError as error:
        known = ", ".join(map(repr, _FORMULAS))
        raise ValueError(f"`names` must be among {known}, got {error.args[0]!r}.") from None


class _Batch:
    """The logits and targets of one batch, and their softmax, which is computed once if needed."""

    def __init__(self, logits: Tensor, target: Tensor) -> None:
        if logits.ndim != 2 or target.shape != logits.shape[:1]:
            raise ValueError(
                "`logits` must be [B, C] and `target` [B], "
                f"got shapes {list(logits.shape)} and {list(target.shape)}."
            )
        if not logits.is_floating_point():
            raise TypeError(f"`logits` must be floating, got {logits.dtype}.")
        if target.is_floating_point() or target.dtype == torch.bool:
            raise TypeError(f"`target` must be integer class indices, got {target.dtype}.")
        z = logits.detach()
        self.z = z if z.dtype == torch.float64 else z.float()
        self.y = target.long().unsqueeze(1)

    @cached_property
    def log_p(self) -> Tensor:
        return self.z.log_softmax(1)

    @cached_property
    def p(self) -> Tensor:
        return self.log_p.exp()

    @cached_property
    def others(self) -> Tensor:
        return self.z.scatter(1, self.y, -torch.inf)


def _loss(batch: _Batch) -> Tensor:
    return -batch.log_p.gather(1, batch.y).squeeze(1)


def _el2n(batch: _Batch) -> Tensor:
    others = batch.p.scatter(1, batch.y, 0.0)
    # hypot: the squares of probabilities below 1e-23 are 0 in float32, the larger of the two terms is not.
    return torch.hypot(others.sum(1), torch.linalg.vector_norm(others, dim=1))


def _p_true(batch: _Batch) -> Tensor:
    return batch.log_p.gather(1, batch.y).squeeze(1).exp()


def _margin(batch: _Batch) -> Tensor:
    true = batch.z.gather(1, batch.y).squeeze(1)
    return true - batch.others.amax(1)


def _entropy(batch: _Batch) -> Tensor:
    # A logit of -inf has ln p = -inf; made finite, it meets p = 0 and gives 0 instead of NaN.
    log_p = batch.log_p.clamp_min(torch.finfo(batch.z.dtype).min)
    return -(batch.p * log_p).sum(1)


def _rival(batch: _Batch) -> Tensor:
    return batch.others.argmax(1).to(batch.z.dtype)


def _correct(batch: _Batch) -> Tensor:
    return batch.z.argmax(1) == batch.y.squeeze(1)


_FORMULAS: dict[str, Callable[[_Batch], Tensor]] = {
    "correct": _correct,
    "el2n": _el2n,
    "entropy": _entropy,
    "loss": _loss,
    "margin": _margin,
    "p_true": _p_true,
    "rival": _rival,
}
