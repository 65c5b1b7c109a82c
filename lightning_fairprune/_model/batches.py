"""Batches of any shape: moving them, cutting them up, calling a model with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_fairprune._model.trees import call, leaves, mapped


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Inputs and targets of some samples, on the device of the model; copies, which the model may change."""

    inputs: Any
    target: Any
    size: int

    @classmethod
    def of(cls, raw: object, device: torch.device) -> Batch:
        """Returns what a loader yielded."""
        if not isinstance(raw, (tuple, list)) or len(raw) != 2:
            length = f" of {len(raw)}" if isinstance(raw, (tuple, list)) else ""
            raise ValueError(
                f"`batches` must yield pairs (inputs, target), got {type(raw).__name__}{length}."
            )
        # Scalars, such as the number of a batch, say nothing of its size.
        first = next((tensor for tensor in leaves(raw[0]) if tensor.ndim), None)
        if first is None or len(first) == 0:
            found = "no such tensor" if first is None else f"shape {list(first.shape)}"
            raise ValueError(
                f"the first tensor of the inputs must have the samples along its first axis, got {found}."
            )
        # A tensor made in inference mode cannot take part in a backward pass; its copy can.
        inputs, target = mapped(lambda t: t.detach().to(device, copy=True), (raw[0], raw[1]))
        return cls(inputs, target, len(first))

    def check_rows(self) -> None:
        """Raises unless every tensor has the samples along its first axis."""
        for tensor in leaves((self.inputs, self.target)):
            if tensor.ndim == 0 or len(tensor) != self.size:
                raise ValueError(
                    "every tensor that `batches` yields must have the samples along its first axis, got "
                    f"shape {list(tensor.shape)} next to {self.size} samples."
                )

    def rows(self, index: slice | Tensor) -> Batch:
        self.check_rows()
        inputs, target = mapped(
            lambda t: t[index if isinstance(index, slice) else index.to(t.device)],
            (self.inputs, self.target),
        )
        size = len(range(self.size)[index]) if isinstance(index, slice) else len(index)
        return Batch(inputs, target, size)

    def through(self, model: Callable[..., Any]) -> Any:
        """Returns the outputs of a model, which may write to its inputs: it gets copies."""
        return call(model, mapped(torch.clone, self.inputs))
