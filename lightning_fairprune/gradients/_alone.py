"""One sample after the other: what every faster way must agree with."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from lightning_fairprune._model.batches import Batch
from lightning_fairprune._model.borrowed import State
from lightning_fairprune.gradients._layers import wide
from lightning_fairprune.gradients._loss import Loss


class Start:
    """What a model has when it is given a sample: nothing that it kept of samples before."""

    def __init__(self, model: nn.Module) -> None:
        self._attributes = State(model.modules(), values=False)
        self._buffers = [(b, b.detach().clone(), b._version) for b in model.buffers()]

    def put_back(self) -> None:
        self._attributes.put_back()
        for i, (buffer, value, version) in enumerate(self._buffers):
            if buffer._version != version:
                with torch.no_grad():
                    buffer.detach_().copy_(value)
                self._buffers[i] = (buffer, value, buffer._version)


def alone(
    model: nn.Module, chosen: Iterable[nn.Parameter], batch: Batch, loss: Loss, start: Start
) -> tuple[Tensor, Tensor]:
    """Returns losses and squared gradient norms, [B] each, by one ordinary backward pass per sample."""
    chosen = list(chosen)
    losses, norms2 = [], []
    for i in range(batch.size):
        start.put_back()
        sample = batch.rows(slice(i, i + 1))
        value = loss.of_one(sample.through(model), sample.target)
        grads: tuple[Tensor | None, ...] = ()
        if value.requires_grad:
            grads = torch.autograd.grad(value, chosen, allow_unused=True)
        losses.append(value.detach())
        norms2.append(_squared([g.to_dense() for g in grads if g is not None], value.detach()))
    return torch.stack(losses), torch.stack(norms2)


def _squared(grads: Iterable[Tensor], like: Tensor) -> Tensor:
    zero = wide(torch.zeros_like(like))
    norms = [
        torch.linalg.vector_norm(g, dtype=torch.promote_types(g.dtype, torch.float32))
        for g in grads
    ]
    return torch.stack([zero, *(norm.to(zero) for norm in norms)]).square().sum()
