"""Batches of any shape: cutting them up, calling a model with them, and the loss of each sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_fairprune._model.trees import call, leaves, mapped

__all__ = ["Batch", "Loss"]


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Inputs and targets of some samples; every tensor has the samples along its first axis."""

    inputs: Any
    target: Any
    size: int

    @classmethod
    def of(cls, batch: object, device: torch.device) -> Batch:
        """Returns what a loader yielded, on the device of the model."""
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise ValueError(
                f"`batches` must yield pairs (input, target), got {type(batch).__name__}"
                f"{f' of {len(batch)}' if isinstance(batch, (tuple, list)) else ''}."
            )
        sizes = {tensor.shape[0] if tensor.ndim else None for tensor in leaves(batch)}
        if len(sizes) != 1 or None in sizes or 0 in sizes:
            shapes = [list(tensor.shape) for tensor in leaves(batch)]
            raise ValueError(
                "every tensor that `batches` yields must have the samples along its first axis, "
                f"got shapes {shapes}."
            )
        # A tensor made in inference mode cannot take part in a backward pass; its copy can.
        here = mapped(
            lambda t: t.to(device).clone() if t.is_inference() else t.detach().to(device), batch
        )
        return cls(here[0], here[1], sizes.pop() or 0)

    def rows(self, start: int, stop: int) -> Batch:
        """Returns the samples from `start` to `stop`."""
        cut = mapped(lambda t: t[start:stop], (self.inputs, self.target))
        return Batch(cut[0], cut[1], min(stop, self.size) - start)

    def through(self, model: Callable[..., Any]) -> Any:
        """Returns the model's outputs: a mapping gives named arguments, a tuple or list positional ones."""
        # The model may work in place, and runs several times.
        inputs = mapped(torch.clone, self.inputs)
        return call(model, inputs)


@dataclass(frozen=True, slots=True)
class Loss:
    """The losses of the samples of a batch, each as `function` gives it for a batch of one.

    Args:
        function: the user's: (outputs, target) -> [] or [B].
        each: whether it returns one loss per sample.
        vectorised: whether torch.func can take it over the samples, if it does not.
    """

    function: Callable[[Any, Any], Tensor]
    each: bool = False
    vectorised: bool = False

    def raw(self, outputs: Any, target: Any, size: int) -> Tensor:
        """Returns what the function returns, [] or [B]."""
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
        """Returns the loss of a batch of one, []."""
        return self.raw(outputs, target, 1).reshape(())

    def of_each(self, outputs: Any, target: Any, size: int) -> Tensor:
        """Returns the loss of every sample, [B]."""
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
