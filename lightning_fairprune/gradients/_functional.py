"""Per-sample gradient norms of anything: by torch.func, or one sample after the other."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_fairprune._model.batches import Batch
from lightning_fairprune._model.trees import leaves, mapped
from lightning_fairprune.gradients._layers import wide
from lightning_fairprune.gradients._loss import Loss
from lightning_fairprune.gradients._uses import Call, Layers, Surprise, Uses, input_of, watched


def vectorised(
    model: nn.Module,
    rest: Mapping[str, nn.Parameter],
    layers: Layers,
    batch: Batch,
    loss: Loss,
) -> tuple[Tensor, Tensor]:
    """Returns losses and squared gradient norms, [B] each, by torch.func, which may raise any exception.

    It has the gradients of `rest` for a piece of the batch at once. Parameters of `layers` use their rules: zeros that
    are added to the layers' outputs have the gradients that the rules need.
    """
    calls, _ = watched(model, layers.names, batch.rows(slice(1)))
    if any(layers.axes[call.layer] is None for call in calls):
        raise Surprise
    values = {name: value.detach() for name, value in rest.items()}
    size = next(model.parameters()).element_size()
    numbers = sum(v.numel() for v in values.values()) + sum(torch.Size(c.y).numel() for c in calls)
    step = max(1, layers.memory // (2 * size * max(1, numbers)))
    pieces = [
        _piece(model, values, layers, calls, batch.rows(slice(i, i + step)), loss)
        for i in range(0, batch.size, step)
    ]
    losses, norms2 = zip(*pieces, strict=True)
    return torch.cat(losses), torch.cat(norms2)


def _piece(
    model: nn.Module,
    values: dict[str, Tensor],
    layers: Layers,
    calls: list[Call],
    batch: Batch,
    loss: Loss,
) -> tuple[Tensor, Tensor]:
    tree = (batch.inputs, batch.target)

    def of_one(
        differentiated: tuple[dict[str, Tensor], list[Tensor]], *tensors: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        values, zeros = differentiated
        seen: list[Tensor] = []

        def called(layer: nn.Module, args: tuple[Any, ...], kwargs: Any, y: Tensor) -> Any:
            if not torch.is_grad_enabled():
                return None  # the model turned gradients off: no use
            if len(seen) == len(calls) or layer is not calls[len(seen)].layer:
                raise Surprise
            seen.append(input_of(args, kwargs))
            return y + zeros[len(seen) - 1]

        def call(*args: Any, **kwargs: Any) -> Any:
            return functional_call(model, values, args, kwargs)

        rest = iter(tensors)
        inputs, target = mapped(lambda _: next(rest).unsqueeze(0), tree)
        handles = [
            layer.register_forward_hook(called, prepend=True, with_kwargs=True)
            for layer in layers.names
        ]
        try:
            outputs = Batch(inputs, target, 1).through(call)
        finally:
            for handle in handles:
                handle.remove()
        if len(seen) < len(calls):
            raise Surprise
        return loss.of_one(outputs, target), seen

    def of_each(*tensors: Tensor) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
        (grads, ends), (value, seen) = grad_and_value(of_one, has_aux=True)(
            (values, zeros), *tensors
        )
        return value, _squared(grads.values(), value), seen, ends

    zeros = [call.zero.expand(call.y) for call in calls]
    # torch.func loops over the samples in the other kernels of attention, and warns wherever it loops, which the
    # user cannot change.
    with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
        losses, norms2, inputs, ends = torch.vmap(of_each)(*leaves(tree))
    return losses, norms2 + _of_layers(layers, calls, inputs, ends).norms2(norms2)


def _of_layers(
    layers: Layers, calls: list[Call], inputs: Iterable[Tensor], ends: Iterable[Tensor]
) -> Uses:
    uses = Uses(layers)
    for call in calls:
        uses.expect(call.layer)
    for call, x, g in zip(calls, inputs, ends, strict=True):
        axis = layers.axes[call.layer]
        assert axis is not None, "checked by the caller"
        uses.add(call.layer, x.squeeze(1 + axis), g.squeeze(1 + axis))
    return uses


def one_by_one(
    model: nn.Module, chosen: Mapping[str, nn.Parameter], batch: Batch, loss: Loss
) -> tuple[Tensor, Tensor]:
    """Returns losses and squared gradient norms, [B] each, by one ordinary backward pass per sample."""
    only(model, chosen.values())
    losses, norms2 = [], []
    for i in range(batch.size):
        sample = batch.rows(slice(i, i + 1))
        value = loss.of_one(sample.through(model), sample.target)
        grads: tuple[Tensor | None, ...] = ()
        if value.requires_grad:
            grads = torch.autograd.grad(value, list(chosen.values()), allow_unused=True)
        losses.append(value.detach())
        norms2.append(_squared([g.to_dense() for g in grads if g is not None], value.detach()))
    return torch.stack(losses), torch.stack(norms2)


def only(model: nn.Module, chosen: Iterable[nn.Parameter]) -> None:
    """Lets only these parameters require a gradient."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in chosen:
        parameter.requires_grad_(True)


def _squared(grads: Iterable[Tensor], like: Tensor) -> Tensor:
    zero = wide(torch.zeros_like(like))
    return torch.stack([zero, *(wide(grad).square().sum().to(zero) for grad in grads)]).sum()
