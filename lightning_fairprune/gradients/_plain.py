"""Per-sample gradient norms of anything: by torch.func, or one sample after the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_fairprune.gradients._batch import Batch, Loss, leaves, mapped

__all__ = ["one_by_one", "vectorised"]


def vectorised(
    model: nn.Module, chosen: Mapping[str, nn.Parameter], batch: Batch, loss: Loss, memory: int
) -> tuple[Tensor, Tensor]:
    """Returns losses and squared gradient norms, [B] each, with the gradients of a piece of the batch at once.

    Whatever the model's operations allow: torch.func raises for what it cannot do.
    """
    tree = (batch.inputs, batch.target)

    def of_one(values: dict[str, Tensor], *tensors: Tensor) -> Tensor:
        rest = iter(tensors)
        inputs, target = mapped(lambda _: next(rest).unsqueeze(0), tree)

        def call(*args: Any, **kwargs: Any) -> Any:
            return functional_call(model, values, args, kwargs)

        return loss.of_one(Batch(inputs, target, 1).through(call), target)

    def both(values: dict[str, Tensor], *tensors: Tensor) -> tuple[Tensor, Tensor]:
        grads, value = grad_and_value(of_one)(values, *tensors)
        return value, _squared(grads.values())

    values = {name: value.detach() for name, value in chosen.items()}
    tensors = list(leaves(tree))
    each = sum(2 * value.numel() * value.element_size() for value in values.values())
    over = torch.vmap(
        both,
        in_dims=(None, *[0] * len(tensors)),
        chunk_size=min(batch.size, max(1, memory // max(1, each))),
    )
    with sdpa_kernel(SDPBackend.MATH):  # torch.func goes sample by sample through the other kernels
        losses, norms2 = over(values, *tensors)
    return losses, norms2


def one_by_one(
    model: nn.Module, chosen: Mapping[str, nn.Parameter], batch: Batch, loss: Loss
) -> tuple[Tensor, Tensor]:
    """Returns losses and squared gradient norms, [B] each, by one ordinary backward pass per sample."""
    parameters = list(chosen.values())
    for parameter in parameters:
        parameter.requires_grad_(True)
    losses, norms2 = [], []
    for i in range(batch.size):
        sample = batch.rows(i, i + 1)
        value = loss.of_one(sample.through(model), sample.target)
        grads: tuple[Tensor | None, ...] = ()
        if value.requires_grad:
            grads = torch.autograd.grad(value, parameters, allow_unused=True)
        used = [grad.to_dense() for grad in grads if grad is not None]
        losses.append(value.detach())
        norms2.append(_squared(used) if used else torch.zeros_like(value))
    return torch.stack(losses), torch.stack(norms2)


def _squared(grads: Any) -> Tensor:
    terms = [grad.square().sum() for grad in grads]
    return torch.stack([term.to(terms[0].device) for term in terms]).sum()
