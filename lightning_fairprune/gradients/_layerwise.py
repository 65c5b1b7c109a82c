"""One forward and one backward pass for a batch, in which hooks take each layer's gradient norms."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_fairprune._model.batches import Batch
from lightning_fairprune.gradients import _attention
from lightning_fairprune.gradients._loss import Loss
from lightning_fairprune.gradients._uses import Layers, Surprise, Uses, input_of, output_of


def layerwise(model: nn.Module, layers: Layers, batch: Batch, loss: Loss) -> tuple[Tensor, Tensor]:
    """Returns losses and squared gradient norms, [B] each; no parameter may require a gradient."""
    tape = _Tape(layers, batch.size)
    with tape.watching():
        losses = loss.of_each(batch.through(model), batch.target, batch.size)
        tape.forward = False
        if tape.anchors and losses.requires_grad:
            torch.autograd.grad(losses.sum(), tape.anchors, allow_unused=True)
    return losses.detach(), tape.uses.norms2(losses.detach())


class _Tape:
    """What hooks on the layers collect in one forward and backward pass."""

    def __init__(self, layers: Layers, size: int) -> None:
        self.uses, self.axes, self.size = Uses(layers), layers.axes, size
        self.forward = True  # checkpointed blocks run forward once more during the backward pass
        self.anchors: list[Tensor] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        # First of all hooks: others may change the output, which would no longer be the layer's own.
        handles = [
            layer.register_forward_hook(self._called, prepend=True, with_kwargs=True)
            for layer in self.uses.layers
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _called(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        y = output_of(output)
        replaced = None
        if not y.requires_grad:  # nothing before it does: the backward pass ends here
            anchor = y.new_zeros(()).requires_grad_()
            self.anchors.append(anchor)
            y = y + anchor
            replaced = y if output_of(output) is output else (y, *output[1:])
        if self.forward and torch.is_grad_enabled():
            self._listen(layer, args, kwargs, y)
        return replaced

    def _listen(self, layer: nn.Module, args: Any, kwargs: Any, y: Tensor) -> None:
        x, axis = input_of(args, kwargs), self.axes[layer]
        if axis is None or not axis < x.ndim or {x.shape[axis], y.shape[axis]} != {self.size}:
            raise Surprise
        self.uses.expect(layer)
        whole = isinstance(layer, nn.MultiheadAttention)
        kept = [(x.detach(), args, kwargs) if whole else (x.detach(), (), {})]
        version = x._version

        def collect(g: Tensor) -> None:
            x, args, kwargs = kept.pop()  # the hook lives as long as the graph, the input need not
            if x._version != version:  # changed in place since
                raise Surprise
            if whole:
                self._add_attention(layer, args, kwargs, g)
            else:
                self.uses.add(layer, x.movedim(axis, 0), g.movedim(axis, 0))

        y.register_hook(collect)  # type: ignore[no-untyped-call]

    def _add_attention(self, layer: nn.Module, args: Any, kwargs: Any, g: Tensor) -> None:
        for name, rule, x, grad in _attention.projections(layer, args, kwargs, g):
            if name in self.uses.layers[layer]:
                self.uses.add_alone(rule, layer, x, grad)
