"""The gradient of the loss, averaged over batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_fairprune._model.batches import Batch
from lightning_fairprune._model.borrowed import borrowed, device_of
from lightning_fairprune._model.trees import call
from lightning_fairprune.criteria._parameters import full_precision
from lightning_fairprune.criteria._ranks import agreed, total

LossFn = Callable[[Any, Any], Tensor]


def mean_gradient(
    model: nn.Module, weights: Mapping[str, nn.Parameter], batches: Iterable[Any], loss_fn: LossFn
) -> dict[str, Tensor]:
    """Returns the mean over all samples, of all ranks, of the gradient of the batches' mean losses."""
    device = device_of(model)
    sums = {name: torch.zeros_like(full_precision(w)) for name, w in weights.items()}
    count = torch.zeros((), dtype=torch.int64, device=device)

    def add(batch: Batch, _: Any) -> Tensor:
        nonlocal count
        loss, grads = gradients(model, weights, batch, loss_fn)
        for name, grad in grads.items():
            sums[name].add_(grad, alpha=batch.size)
        count += batch.size
        return loss

    over_batches(model, batches, add, count, sums.values())
    for value in sums.values():
        value /= count.to(value.device)
    check_finite(sums)
    return sums


def over_batches(
    model: nn.Module,
    batches: Iterable[Any],
    add: Callable[[Batch, Any], Tensor],
    count: Tensor,
    sums: Iterable[Tensor],
) -> None:
    """Calls `add` for the loss of each batch (also as it was yielded), then sums its counts over all ranks."""
    device = device_of(model)
    with agreed(device), borrowed(model, gradients=True):
        losses = [add(Batch.of(raw, device), raw) for raw in batches]
        _check_losses(losses)
    total([count, *sums])
    if not count.any():
        raise ValueError("`batches` must hold at least one batch, got none.")


def gradients(
    model: nn.Module, weights: Mapping[str, nn.Parameter], batch: Batch, loss_fn: LossFn
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


def _check_losses(losses: list[Tensor]) -> None:
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
    for name, value in values.items():
        if not value.isfinite().all():
            raise ValueError(
                f"every gradient must be finite, got NaN or infinity for `{name}`: is the model in half "
                "precision?"
            )


def scalar(loss: object) -> Tensor:
    if not isinstance(loss, Tensor):
        raise TypeError(f"`loss_fn` must return a tensor, got {type(loss).__name__}.")
    if loss.ndim:
        raise ValueError(
            f"`loss_fn` must return the mean over the batch as a scalar, got shape {list(loss.shape)}."
        )
    return loss
