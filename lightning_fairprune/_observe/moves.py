"""How far the softmax of each sample moves from one epoch to the next, over all classes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

MOVE = "move"
"""The name of the signal, which needs the epoch before; those of `signals` need one batch."""

_EPSILON = 1e-8
_UNSEEN = 1.0  # in the place of a logarithm of a probability
_ROWS_AT_ONCE = 65_536  # that are summed over ranks in float32


def one_each(logits: Tensor) -> Tensor:
    """Returns logits [B, C]; raises a ValueError if samples have several predictions."""
    if logits.ndim != 2:
        raise ValueError(
            f"the signal `{MOVE}`, of scores.tdds, needs one prediction for each sample, got logits of shape "
            f"{list(logits.shape)}: choose another score."
        )
    return logits


def log_p(logits: Tensor) -> Tensor:
    """Returns ln(p + 1e-8) of logits [B, C], float32, as the published code has it."""
    exact = logits.detach().float().log_softmax(1)
    return torch.logaddexp(exact, torch.full_like(exact, math.log(_EPSILON)))


def moved(before: Tensor, now: Tensor) -> Tensor:
    r"""Returns `\sum_c |p_c (\ln p_c - \ln q_c)|` from ln q and ln p, [B, C]; 0 where q is not known.

    Example:
        >>> moved(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log())
        tensor([0.4774])
    """
    before, now = before.float(), now.float()
    p = now.exp() - _EPSILON
    move = (p * (now - before)).abs().sum(1)
    return torch.where(before[:, 0] > 0, torch.zeros_like(move), move)


class Moves:
    """Keeps the softmax of every sample in the last epoch and in the running one: 4 C bytes a sample.

    ln p is stored in float16, on the device of the logits, from the first batch on.
    """

    def __init__(self, num_samples: int) -> None:
        self._num_samples = num_samples
        self._before: Tensor | None = None
        self._now: Tensor | None = None

    def update(self, indices: Tensor, logits: Tensor) -> Tensor:
        """Takes the logits [B, C] of samples, and returns their moves [B]."""
        logits = one_each(logits)
        if self._now is None or self._before is None:
            self._before, self._now = self._allocated(logits, _UNSEEN), self._allocated(logits, 0.0)
        now = log_p(logits)
        self._now.index_copy_(0, indices, now.half())
        return moved(self._before[indices], now)

    def _allocated(self, logits: Tensor, fill: float) -> Tensor:
        shape = self._num_samples, logits.shape[1]
        try:
            return torch.full(shape, fill, dtype=torch.float16, device=logits.device)
        except RuntimeError as error:
            raise RuntimeError(
                f"the signal `{MOVE}`, of scores.tdds, keeps the softmax of {shape[0]} samples in two epochs, "
                f"{4 * shape[0] * shape[1] / 2**20:.0f} MiB on {logits.device}, which are not free: choose another score, "
                "such as scores.dynamic_uncertainty."
            ) from error

    def finish_epoch(self, seen: Tensor, reduce_sum: Callable[[Tensor], Tensor]) -> None:
        """Makes the running epoch the last one; `seen` counts its observations of each sample over the ranks, [N]."""
        if self._now is None:
            return
        self._before = self._mean(self._now, seen, reduce_sum, _UNSEEN)
        self._now.zero_()

    def to(self, device: torch.device | str) -> None:
        """Moves the buffers."""
        self._before, self._now = (
            None if kept is None else kept.to(device) for kept in (self._before, self._now)
        )

    def release(self) -> None:
        """Frees the memory."""
        self._before = self._now = None

    @property
    def device_bytes(self) -> int:
        """Size of the buffers."""
        return sum(k.numel() * k.element_size() for k in (self._before, self._now) if k is not None)

    def state_dict(self, seen: Tensor, reduce_sum: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """Returns both epochs on the CPU, the running one as its mean over the ranks."""
        if self._now is None or self._before is None:
            return {}
        now = self._mean(self._now, seen, reduce_sum, 0.0).cpu() if seen.any() else None
        return {"before": self._before.cpu(), "now": now}

    def load_state_dict(self, state: dict[str, Any], device: torch.device | str) -> None:
        """Continues where `state_dict` was taken."""
        self.release()
        if state:
            before, now = state["before"], state["now"]
            self._before = before.to(device, copy=True)
            self._now = torch.zeros_like(self._before) if now is None else now.to(device, copy=True)

    @staticmethod
    def _mean(
        values: Tensor, seen: Tensor, reduce_sum: Callable[[Tensor], Tensor], missing: float
    ) -> Tensor:
        seen, means = seen.to(values.device).unsqueeze(1), []
        parts = zip(
            torch.split(values, _ROWS_AT_ONCE), torch.split(seen, _ROWS_AT_ONCE), strict=True
        )
        for part, count in parts:
            mean = reduce_sum(part.float()) / count.clamp(min=1)
            means.append(torch.where(count > 0, mean, missing).half())
        return torch.cat(means)
