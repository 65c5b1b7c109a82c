"""Weights in the loss: of classes, from their recalls; of samples, from the outputs of a dense model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "cdb_w",
    "cdb_w_drop",
    "corrected_targets",
    "performance_weighted_loss",
    "performance_weights",
]


def cdb_w(
    recall: Tensor | Sequence[float], *, tau: float | Literal["dynamic"] = "dynamic"
) -> Tensor:
    r"""Return class weights by difficulty (CDB-W) that sum to the number of classes.

    .. math:: w_k = K \frac{(1 - a_k)^\tau}{\sum_j (1 - a_j)^\tau}, \qquad
        \tau_\text{dynamic} = 2 \sigma\Big(\frac{\max_k a_k}{\min_k a_k + 0.01} - 1\Big),

    where :math:`a_k` is the recall of class k in validation: Sinha, Ohashi and Nakamura,
    "Class-Difficulty Based Methods for Long-Tailed Visual Recognition", IJCV 2022 (arXiv 2207.14499).
    The dynamic exponent is about 1 for equal recalls and tends to 2 as they move apart. It is that of
    ``compute_weights`` in the authors' code (github hitachi-rd-cv/CDB-loss); the loss class of their
    training script uses :math:`\sigma(\max a / (\min a + 0.01))` instead.

    Args:
        recall: float [K], in [0, 1]; NaN marks a class without validation samples. It gets weight 1,
            and the weights of the others sum to their number.
        tau: exponent, 0 or more, or ``"dynamic"``.

    Returns:
        Float [K] on the device of `recall`, each in [0, K]. Ones if all known recalls are 1 (0 / 0 in
        the formula) or none is known. Otherwise a class of recall 1 has weight 0: on a batch of such
        samples alone, the mean of a weighted ``cross_entropy`` is 0 / 0.

    Raises:
        ValueError: If a recall is outside [0, 1], there is none, or `tau` is negative or not finite.

    Example:
        Errors .1, .3 and .6 sum to 1; squared they are .01, .09 and .36 and sum to .46.

        >>> cdb_w([0.9, 0.7, 0.4], tau=1)
        tensor([0.3000, 0.9000, 1.8000])
        >>> cdb_w([0.9, 0.7, 0.4], tau=2)
        tensor([0.0652, 0.5870, 2.3478])
        >>> cdb_w([0.9, 0.7, float("nan")], tau=1)
        tensor([0.5000, 1.5000, 1.0000])
    """
    error, known = _errors(recall)
    if tau == "dynamic":
        # Without a known class: 0 / 0.01, and the exponent does not matter.
        most = torch.where(known, 1 - error, 0).max()
        least = torch.where(known, 1 - error, most).min()
        power: float | Tensor = 2 * torch.sigmoid(most / (least + 0.01) - 1)
    elif isinstance(tau, int | float) and 0 <= tau < math.inf:
        power = tau
    else:
        raise ValueError(f"`tau` must be 'dynamic' or a number of at least 0, got {tau!r}.")
    weight = torch.where(known, error**power, 0)
    return torch.where(known & (weight.sum() > 0), known.sum() * weight / weight.sum(), 1)


def cdb_w_drop(recall: Tensor | Sequence[float]) -> Tensor:
    r"""Return class weights in the form of DRoP's published code: the error of each class.

    .. math:: w_k = 1 - r_k

    That is :func:`cdb_w` with :math:`\tau = 1`, not normalised: the baseline "CDB-W" of Vysogorets,
    Ahuja and Kempe, "DRoP: Distributionally Robust Data Pruning", ICLR 2025 (arXiv 2404.05579; github
    avysogorets/fair-data-pruning). The factor matters only to losses that do not divide by the summed
    weights of the batch; ``cross_entropy`` with ``reduction="mean"`` does. Their code has weights of 1
    in the first epoch.

    Args:
        recall: float [K], in [0, 1]; NaN marks a class without validation samples, which gets the mean
            weight of the others.

    Returns:
        Float [K] on the device of `recall`, each in [0, 1]. Ones if all known recalls are 1 or none is
        known.

    Raises:
        ValueError: If a recall is outside [0, 1] or there is none.

    Example:
        >>> cdb_w_drop([0.9, 0.7, 0.4])
        tensor([0.1000, 0.3000, 0.6000])
        >>> cdb_w_drop([0.9, 0.7, float("nan")])
        tensor([0.1000, 0.3000, 0.2000])
    """
    error, known = _errors(recall)
    return torch.where(error.sum() > 0, torch.where(known, error, error.sum() / known.sum()), 1)


def performance_weights(
    dense_logits: Tensor, target: Tensor, *, m: float = 0.75, gamma: float = 5.0
) -> Tensor:
    r"""Return sample weights that are higher where the dense model was less sure of the true class.

    .. math:: w = m + (1 - m) (1 - p_\text{dense}(y))^\gamma

    Meyer and Wong, "A Fair Loss Function for Network Pruning", TSRML workshop at NeurIPS 2022 (arXiv
    2211.10285). The defaults are those of the command line in their code (github
    robbiemeyer/pw_loss_pruning); its pruner class has m = 0.4 and gamma = 0.5.

    Args:
        dense_logits: of the model before pruning, float [B, C], C >= 2. Log-probabilities are logits
            too: for probabilities pass ``p.log()``.
        target: class of each sample, integer [B], in [0, C).
        m: lowest weight, in [0, 1].
        gamma: exponent, 0 or more; 0 gives all samples weight 1.

    Returns:
        Weights in [m, 1], float32 (float64 for such logits), [B], without gradient.

    Raises:
        ValueError: If a shape does not fit or `m` or `gamma` is out of range.

    Example:
        The dense model gives the true class .5 and .8: .5 + .5 * .5 ** 2 and .5 + .5 * .2 ** 2.

        >>> p = torch.tensor([[0.5, 0.5], [0.2, 0.8]])
        >>> performance_weights(p.log(), torch.tensor([0, 1]), m=0.5, gamma=2)
        tensor([0.6250, 0.5200])
    """
    dense_logits = _dense(dense_logits, target)
    if not 0 <= m <= 1:
        raise ValueError(f"`m` must be in [0, 1], got {m}.")
    if not 0 <= gamma < math.inf:
        raise ValueError(f"`gamma` must be 0 or more, got {gamma}.")
    log_p = F.log_softmax(dense_logits, dim=1).gather(1, target[:, None].long()).squeeze(1)
    # Rounding may take a log-probability above 0, and powers of negative numbers are NaN.
    return m + (1 - m) * (-torch.expm1(log_p)).clamp(min=0) ** gamma


def corrected_targets(dense_logits: Tensor, target: Tensor) -> Tensor:
    """Return the dense model's probabilities as soft targets, the one-hot true class where it was wrong.

    Meyer and Wong (arXiv 2211.10285): a pruned model should match the dense one, not its mistakes.
    Arguments are those of `performance_weights`.

    Returns:
        Probabilities, float32 (float64 for such logits), [B, C], without gradient.

    Raises:
        ValueError: If a shape does not fit.

    Example:
        >>> p = torch.tensor([[0.6, 0.4], [0.2, 0.8]])
        >>> corrected_targets(p.log(), torch.tensor([1, 1]))
        tensor([[0.0000, 1.0000],
                [0.2000, 0.8000]])
    """
    dense_logits = _dense(dense_logits, target)
    truth = torch.zeros_like(dense_logits).scatter_(1, target[:, None].long(), 1.0)
    right = dense_logits.argmax(dim=1) == target
    return torch.where(right[:, None], dense_logits.softmax(dim=1), truth)


def performance_weighted_loss(
    logits: Tensor, dense_logits: Tensor, target: Tensor, *, m: float = 0.75, gamma: float = 5.0
) -> Tensor:
    r"""Return the performance-weighted loss of a pruned model relative to its dense model.

    .. math:: \frac{1}{B} \sum_i w_i \Big(- \sum_c \tilde y_{ic} \log p_{ic}\Big)

    with the weights w of :func:`performance_weights`, the soft targets :math:`\tilde y` of
    :func:`corrected_targets` and the pruned model's probabilities p. The mean is over samples, not
    over weights, as in the authors' code.

    Args:
        logits: of the model in training, float [B, C].
        dense_logits: of the model before pruning in eval mode, float [B, C], C >= 2.
        target: as in `performance_weights`, like `m` and `gamma`.
        m: lowest weight.
        gamma: exponent.

    Returns:
        Scalar, float32 (float64 for such logits), with gradient to `logits` alone.

    Raises:
        ValueError: If a shape does not fit or `m` or `gamma` is out of range.

    Example:
        The dense model is wrong, so the target is one-hot; the weight is .5 + .5 * .6 = .8, and the
        loss .8 * ln 2.

        >>> p = torch.tensor([[0.6, 0.4]])
        >>> loss = performance_weighted_loss(
        ...     torch.zeros(1, 2), p.log(), torch.tensor([1]), m=0.5, gamma=1
        ... )
        >>> round(loss.item(), 4)
        0.5545
    """
    if logits.shape != dense_logits.shape:
        raise ValueError(
            "`logits` and `dense_logits` must be of the same shape [B, C], got "
            f"{list(logits.shape)} and {list(dense_logits.shape)}."
        )
    weight = performance_weights(dense_logits, target, m=m, gamma=gamma)
    soft = corrected_targets(dense_logits, target)
    log_p = F.log_softmax(_at_least_single(logits), dim=1)
    return -(weight[:, None] * soft * log_p).sum() / len(logits)


def _errors(recall: Tensor | Sequence[float]) -> tuple[Tensor, Tensor]:
    """Returns 1 - recall, 0 where unknown, and which recalls are known."""
    rate = _at_least_single(torch.as_tensor(recall).detach())
    if rate.ndim != 1 or len(rate) == 0:
        raise ValueError(
            f"`recall` must be [K] with at least one class, got shape {list(rate.shape)}."
        )
    wrong = (rate < 0) | (rate > 1)
    if wrong.any():
        k = int(wrong.nonzero()[0])
        raise ValueError(
            "`recall` must be in [0, 1], or NaN for a class never seen in validation, got "
            f"{float(rate[k])} for class {k}."
        )
    known = ~rate.isnan()
    return torch.where(known, 1 - rate, 0), known


def _dense(logits: Tensor, target: Tensor) -> Tensor:
    if logits.ndim != 2 or logits.shape[1] < 2 or target.shape != logits.shape[:1]:
        raise ValueError(
            "`dense_logits` must be [B, C] of at least 2 classes and `target` [B], got "
            f"{list(logits.shape)} and {list(target.shape)}."
        )
    if target.is_floating_point():
        raise ValueError(
            f"`target` must hold one class index per sample, got {target.dtype}: soft targets come "
            "from the dense model."
        )
    return _at_least_single(logits.detach())


def _at_least_single(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
