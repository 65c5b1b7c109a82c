"""The loss of each sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Loss:
    """The user's `function`, whose loss of a sample is that of a batch of one."""

    function: Callable[[Any, Any], Tensor]

    def raw(self, outputs: Any, target: Any, size: int) -> Tensor:
        """Returns what `function` returns, [] or [B], checked."""
        value = self.function(outputs, target)
        if not isinstance(value, Tensor):
            raise TypeError(f"`loss_fn` must return a tensor, got {type(value).__name__}.")
        if value.ndim and value.shape != (size,):
            raise ValueError(
                "`loss_fn` must return one loss per sample [B] or their mean or sum [], got "
                f"{list(value.shape)} for B = {size}."
            )
        return value

    def of_one(self, outputs: Any, target: Any) -> Tensor:
        return self.raw(outputs, target, 1).reshape(())
