"""The gradient of the loss, averaged over batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_fairprune._model.batches import Batch, Loss, scalar
from lightning_fairprune._model.borrowed import borrowed, device_of
from lightning_fairprune._model.trees import call
from lightning_fairprune.criteria._parameters import full_precision
from lightning_fairprune.criteria._ranks import agreed, total

__all__ = ["check_finite", "check_losses", "gradients", "mean_gradient"]


def mean_gradient(
    model: nn.Module, weights: Mapping[str, nn.Parameter], batches: Iterable[Any], loss_fn: Loss
) -> dict[str, Tensor]:
    """Returns the mean over all samples, of all ranks, of the gradient of the batches' mean losses."""
    device = device_of(model)
    sums = {name: torch.zeros_like(full_precision(w)) for name, w in weights.items()}
    count = torch.zeros((), dtype=torch.int64, device=device)
    losses: list[Tensor] = []
    with agreed(device), borrowed(model, gradients=True):
        for raw in batches:
            batch = Batch.of(raw, device)
            loss, grads = gradients(model, weights, batch, loss_fn)
            for name, grad in grads.items():
                sums[name].add_(grad, alpha=batch.size)
            count += batch.size
            losses.append(loss)
        check_losses(losses)
    total([count, *sums.values()])
    if not count:
        raise ValueError("`batches` must hold at least one batch, got none.")
    for value in sums.values():
        value /= count.to(value.device)
    check_finite(sums)
    return sums


def gradients(
    model: nn.Module, weights: Mapping[str, nn.Parameter], batch: Batch, loss_fn: Loss
) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns the loss of a batch and its gradients; those of weights it does not depend on are left out."""
    for weight in weights.values():
        weight.requires_grad_(True)
    loss = scalar(loss_fn(call(model, batch.inputs), batch.target))
    found: tuple[Tensor | None, ...] = (None,)
    if loss.requires_grad:
        found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    if all(grad is None for grad in found):
        raise ValueError(
            "`loss_fn` must return a loss that depends on a parameter that is scored, got one that does not: "
            "look for `detach`, `no_grad` or `item` in `model` and `loss_fn`."
        )
    grads = {
        name: grad.to_dense() if grad.is_sparse else grad
        for name, grad in zip(weights, found, strict=True)
        if grad is not None
    }
    return loss.detach(), grads


def check_losses(losses: list[Tensor]) -> None:
    """Raises if a batch's loss is not finite; once for all batches, which waits for the device once."""
    if not losses:
        return
    values = torch.stack(losses)
    if not values.isfinite().all():
        first = int((~values.isfinite()).int().argmax())
        raise ValueError(
            f"`loss_fn` must return a finite loss, got {float(values[first])} for batch {first}."
        )


def check_finite(values: Mapping[str, Tensor]) -> None:
    """Raises if a gradient overflowed or is undefined."""
    for name, value in values.items():
        if not value.isfinite().all():
            raise ValueError(
                f"every gradient must be finite, got others for `{name}`: is the model in half precision?"
            )
