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
    r"""Quotas that follow the recalls until they are equal, one step per call.

    Keeps a log-weight :math:`\ell_k` per class, 0 at first. A call updates it once from the
    recalls and shares the budget in proportion to :math:`N_k e^{\ell_k}`, capped at the class size:

    .. math::
        \ell_k \leftarrow (1 - \text{leak}) \, \ell_k + \text{step} \, (\bar r - r_k), \qquad
        n_k = \min(N_k, c \, N_k e^{\ell_k})

    with :math:`\bar r` the mean recall over classes. This is exponentiated gradient ascent on the
    class errors, the update by which group DRO (Sagawa, Koh, Hashimoto and Liang, ICLR 2020, arXiv
    1911.08731, Algorithm 1) plays against the learner; there it weights the groups' losses, here it
    chooses how many samples of each class to train on. With ``leak=0`` the fixed points are those
    with equal recalls (or where no class has samples left); `drop` has no such feedback and may
    correct too much or too little. With ``leak > 0`` the fixed point,
    :math:`\ell_k = (\bar r - r_k) \, \text{step} / \text{leak}`, lies between the class proportions
    and equal recalls, so that classes that cannot be helped do not take ever more of the budget.

    The steps sum to zero over the classes. A class of recall NaN (not seen in validation) or without
    training samples has step 0 and is left out of the mean.

    Args:
        step: size of the update, > 0. An error gap of 0.1 changes a class's share by the factor
            exp(0.1 * step) in one call.
        leak: fraction of the log-weights forgotten in each call, in [0, 1).

    Attributes:
        log_weight: float64 [K], or None before the first call.

    Raises:
        ValueError: a step or leak out of range; when called, what `drop` refuses, or another number
            of classes than before. A call that raises leaves the weights as they were.

    Example:
        The recall of class 1 is lower by 0.2: its step is 5 * 0.1, that of class 0 -5 * 0.1, and the
        ratio of the quotas becomes e^-1 = 0.368.

        >>> quota = Minimax(step=5.0)
        >>> quota([1000, 1000], [0.9, 0.7], 1000)
        tensor([269, 731])
        >>> quota([1000, 1000], [0.8, 0.8], 1000)  # equal recalls: nothing left to change
        tensor([269, 731])
    """

    def __init__(self, step: float = 1.0, leak: float = 0.0) -> None:
        if not 0 < step < math.inf:
            raise ValueError(f"`step` must be positive and finite, got {step}.")
        if not 0 <= leak < 1:
            raise ValueError(f"`leak` must be in [0, 1), got {leak}.")
        self.step = float(step)
        self.leak = float(leak)
        self.log_weight: Tensor | None = None

    def __call__(
        self,
        sizes: Tensor | Sequence[int],
        recall: Tensor | Sequence[float],
        budget: int,
        *,
        floor: int | Tensor | Sequence[int] = 0,
        cap: int | Tensor | Sequence[int] | None = None,
    ) -> Tensor:
        """Update the log-weights once and return the quotas, int64 [K]; arguments as in `drop`."""
        size, capacity = sizes_and_capacity(sizes, cap)
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
        """Return the log-weights, step and leak as a tensor (or None) and two floats."""
        log_weight = None if self.log_weight is None else self.log_weight.clone()
        return {"log_weight": log_weight, "step": self.step, "leak": self.leak}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the log-weights from ``state``; step and leak stay as constructed."""
        value = state["log_weight"]
        if value is not None:
            value = torch.as_tensor(value, dtype=torch.float64).detach().cpu().clone()
            if value.dim() != 1 or not bool(value.isfinite().all()):
                raise ValueError(
                    f"`log_weight` must be finite and of shape [K], got shape {tuple(value.shape)}."
                )
        self.log_weight = value

    def __repr__(self) -> str:
        return f"Minimax(step={self.step:g}, leak={self.leak:g})"
