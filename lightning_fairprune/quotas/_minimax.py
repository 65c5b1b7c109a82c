"""The rule with state: quotas that follow the recalls from call to call."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_fairprune.quotas._apportion import apportion
from lightning_fairprune.quotas._arguments import recalls, sizes_and_capacity


class Minimax:
    r"""Quotas that follow the recalls until they are equal, one step per call, within bounds.

    Keeps a log-weight :math:`\ell_k` per class, 0 at first. A call updates it once from the
    recalls, projects the shares, and gives each class its share of the budget, or all its samples:

    .. math::
        \ell_k \leftarrow (1 - \text{leak}) \, \ell_k + \text{step} \, (\bar r - r_k), \qquad
        \ell_k \leftarrow \min(\ell_k, \tau), \qquad n_k = \min(N_k, c \, N_k e^{\ell_k})

    with :math:`\bar r` the mean recall over classes, :math:`p_k = N_k / N`, and :math:`\tau` the one
    number that keeps every share :math:`q_k \propto p_k e^{\ell_k}` at or below
    :math:`p_k / \text{worst}`: the projection in relative entropy onto the weights of the conditional
    value at risk, whose maximum is the mean error of the ``worst`` fraction of the data (Rockafellar
    and Uryasev, Journal of Risk 2000; as an adversary of training: Levy, Carmon, Duchi and Sidford,
    "Large-Scale Methods for Distributionally Robust Optimization", NeurIPS 2020, arXiv 2010.05893,
    equation 5). So no class gets more than 1/worst times its proportional share, however long its
    recall stays low, and log-weights beyond that are not kept: a class whose recall rises gives
    samples back at once. ``worst=1`` is `proportional`; a ``worst`` of at most the smallest
    :math:`p_k` sets no bound.

    The update is exponentiated gradient ascent on the class errors, by which group DRO (Sagawa, Koh,
    Hashimoto and Liang, ICLR 2020, arXiv 1911.08731, Algorithm 1) plays against the learner; there it
    weights the groups' losses, here it chooses how many samples of each class to train on. With
    ``leak=0`` the fixed points are those with equal recalls (or where a bound is reached); `drop` has
    no such feedback and may correct too much or too little. With ``leak > 0`` the fixed point,
    :math:`\ell_k = (\bar r - r_k) \, \text{step} / \text{leak}` below :math:`\tau`, lies between the
    class proportions and equal recalls, so that easy classes are not given up for those that more
    data cannot help.

    The steps sum to zero over the classes. A class of recall NaN (not seen in validation) or without
    training samples has step 0 and is left out of the mean.

    Args:
        step: size of the update, > 0. An error gap of 0.1 changes a class's share by the factor
            exp(0.1 * step) in one call.
        leak: fraction of the log-weights forgotten in each call, in [0, 1).
        worst: the fraction of the data that the weight may be concentrated on, in (0, 1].

    Attributes:
        log_weight: float64 [K], or None before the first call.

    Raises:
        ValueError: a step, leak or worst out of range; when called, what `drop` refuses, or another
            number of classes than before. A call that raises leaves the weights as they were.

    Example:
        The recall of class 1 is lower by 0.2: its step is 5 * 0.1, that of class 0 -5 * 0.1, and the
        ratio of the quotas becomes e^-1 = 0.368. At worst=0.8 no class gets more than 1 / 0.8 = 1.25
        times its share of 500.

        >>> quota = Minimax(step=5.0, leak=0.0)
        >>> quota([1000, 1000], [0.9, 0.7], 1000)
        tensor([269, 731])
        >>> quota([1000, 1000], [0.8, 0.8], 1000)  # equal recalls: nothing left to change
        tensor([269, 731])
        >>> Minimax(step=5.0, worst=0.8)([1000, 1000], [0.9, 0.7], 1000)
        tensor([375, 625])
    """

    def __init__(self, step: float = 1.0, leak: float = 0.1, worst: float = 0.5) -> None:
        if not 0 < step < math.inf:
            raise ValueError(f"`step` must be positive and finite, got {step}.")
        if not 0 <= leak < 1:
            raise ValueError(f"`leak` must be in [0, 1), got {leak}.")
        if not 0 < worst <= 1:
            raise ValueError(
                f"`worst` must be in (0, 1], got {worst}: no class gets more than 1/worst times its "
                "proportional share."
            )
        self.step = float(step)
        self.leak = float(leak)
        self.worst = float(worst)
        self.log_weight: Tensor | None = None

    def __call__(
        self,
        sizes: Tensor | Sequence[int],
        recall: Tensor | Sequence[float],
        budget: int,
        *,
        floor: int | Tensor | Sequence[int] = 0,
        cap: int | Tensor | Sequence[int] | None = None,
        repeat: int = 1,
    ) -> Tensor:
        """Update the log-weights once and return the quotas, int64 [K]; arguments as in `drop`."""
        size, capacity = sizes_and_capacity(sizes, cap, repeat)
        rate = recalls(recall, len(size))
        old = torch.zeros_like(size) if self.log_weight is None else self.log_weight
        if len(old) != len(size):
            raise ValueError(
                f"`sizes` must have {len(old)} classes as in the calls before, got {len(size)}; "
                "call reset() to start again."
            )
        known = ~rate.isnan() & (size > 0)
        push = torch.where(known, rate[known].mean() - rate, 0.0)
        log_weight = (1 - self.leak) * old + self.step * push
        if bool((size > 0).any()):
            log_weight = log_weight.clamp(max=_ceiling(log_weight, size, self.worst))
        # Relative to the largest of a class with samples: exp neither overflows nor vanishes.
        top = log_weight.masked_fill(size == 0, -math.inf).max() if len(size) else 0.0
        weight = torch.where(size > 0, size * (log_weight - top).exp(), 0.0)
        quota = apportion(weight, capacity, budget, floor=floor)
        self.log_weight = log_weight
        return quota

    def reset(self) -> None:
        """Forget the log-weights, so that the next call starts from the class proportions."""
        self.log_weight = None

    def state_dict(self) -> dict[str, Any]:
        """Return the log-weights, a tensor or None, and step, leak and worst, floats."""
        log_weight = None if self.log_weight is None else self.log_weight.clone()
        constants = {"step": self.step, "leak": self.leak, "worst": self.worst}
        return {"log_weight": log_weight, **constants}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the log-weights from ``state``; step, leak and worst stay as constructed."""
        value = state["log_weight"]
        if value is not None:
            value = torch.as_tensor(value, dtype=torch.float64).detach().cpu().clone()
            if value.dim() != 1 or not bool(value.isfinite().all()):
                raise ValueError(
                    f"`log_weight` must be finite and of shape [K], got shape {tuple(value.shape)}."
                )
        self.log_weight = value

    def __repr__(self) -> str:
        return f"Minimax(step={self.step:g}, leak={self.leak:g}, worst={self.worst:g})"


def _ceiling(log_weight: Tensor, size: Tensor, worst: float) -> float:
    """Return the number at which to cut the log-weights so that no share exceeds p_k / worst.

    With x the log-weights of classes with samples in falling order, the cut t solves
    sum_k p_k min(1, e^(x_k - t)) = worst. The sum is the least, over m, of P_m + S_m e^-t, where P_m
    is the mass of the first m classes and S_m the sum of p_k e^x_k over the others. It falls with t,
    so t is the least of the solutions log S_m - log(worst - P_m).
    """
    some = size > 0
    falling, order = log_weight[some].sort(descending=True, stable=True)
    if worst == 1:  # the only such shares are the proportional ones: here without rounding
        return float(falling[-1])
    mass = (size[some] / size.sum())[order]
    before = mass.cumsum(0) - mass
    rest = (falling + mass.log()).flip(0).logcumsumexp(0).flip(0)
    return float((rest - (worst - before).log())[before < worst].min())
