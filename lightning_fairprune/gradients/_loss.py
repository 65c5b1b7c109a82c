"""The loss of each sample of a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_fairprune._model.trees import leaves, mapped


@dataclass(frozen=True, slots=True)
class Loss:
    """The losses of the samples of a batch, each as `function`, the user's, gives it for a batch of one.

    `each`: it returns one loss per sample. `vectorised`: torch.func can map it over the samples.
    """

    function: Callable[[Any, Any], Tensor]
    each: bool = False
    vectorised: bool = False

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

    def of_each(self, outputs: Any, target: Any, size: int) -> Tensor:
        if self.each:
            return self.raw(outputs, target, size).expand(size)
        shapes = [tuple(tensor.shape) for tensor in leaves(outputs)]
        if any(shape[:1] != (size,) for shape in shapes):
            raise ValueError(
                "`loss_fn` must return one loss per sample [B] unless every output of `model` has the "
                f"samples along its first axis, got outputs of shapes {shapes} for B = {size}."
            )
        if self.vectorised:

            def one(*values: Tensor) -> Tensor:
                rest = iter(values)
                return self.of_one(*mapped(lambda _: next(rest).unsqueeze(0), (outputs, target)))

            losses: Tensor = torch.vmap(one)(*leaves((outputs, target)))
            return losses
        # One cut per tensor, whose backward pass is one concatenation.
        parts = [torch.split(tensor, 1) for tensor in leaves((outputs, target))]

        def sample(i: int) -> Tensor:
            rest = iter(parts)
            return self.of_one(*mapped(lambda _: next(rest)[i], (outputs, target)))

        return torch.stack([sample(i) for i in range(size)])
