"""Synaptic flow: what each weight carries from the input to the output of a network, without data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_fairprune._model.borrowed import borrowed, device_of
from lightning_fairprune._model.trees import call_with, leaves, mapped
from lightning_fairprune.criteria._exact import check_sparsity, keep_highest, num_kept
from lightning_fairprune.criteria._parameters import chosen, full_precision


@torch.inference_mode(False)
def synflow(
    model: nn.Module,
    example_input: Any,
    *,
    masks: Mapping[str, Tensor] | None = None,
    parameters: Iterable[str] | None = None,
) -> dict[str, Tensor]:
    r"""Return the share of the synaptic flow through each weight.

    `|\theta \partial R / \partial \theta| / |R|`, where R is the sum of the outputs for one input of ones, of the network
    whose parameters and floating-point buffers (statistics of batch normalisation) are replaced by their absolute
    values: Tanaka et al., "Pruning neural networks without any data by iteratively conserving synaptic flow" (NeurIPS
    2020, arXiv 2006.05467, equation 2). Division by R is ours: it changes no ranking, and R overflows float32 in deep
    networks. Computed in float64, in eval mode. In a network of layers without biases and with ReLUs, all layers sum to 1;
    softmax, sigmoid and layer normalisation break the theory, not the function.

    Pruning by it once is no better than other criteria; see `synflow_masks` for the rounds of the paper.

    Args:
        model: The network.
        example_input: Inputs as the network gets them: a tensor, a tuple or list (positional arguments) or a mapping
            (named ones), the samples along the first axis of every tensor. Of floating-point tensors only the shape
            counts; of others (token ids) the first sample.
        masks: Weights that are already pruned, by parameter name: False or 0 = removed. They carry no flow and get 0.
        parameters: Names of the parameters to score; None takes those of `prunable`.

    Returns:
        As `magnitude`; all 0 if nothing flows.

    Raises:
        ValueError: If a name is unknown, a mask has another shape than its parameter, there is no weight to score,
            the output does not depend on any of them, or R overflows float64.

    Example:
        R = (|1| + |-3|) * |2| = 8: the first weight carries 2, the second 6, the third all.

        >>> model = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Linear(1, 1, bias=False))
        >>> _ = model[0].weight.data.copy_(torch.tensor([[1.0, -3.0]]))
        >>> _ = model[1].weight.data.fill_(2.0)
        >>> synflow(model, torch.zeros(1, 2))
        {'0.weight': tensor([[0.2500, 0.7500]]), '1.weight': tensor([[1.]])}
    """
    weights = chosen(model, parameters)
    with borrowed(model, gradients=True):
        shares = _flow(model, weights, example_input)(_checked(model, masks or {}))
    return {name: shares[name].to(full_precision(w).dtype) for name, w in weights.items()}


@torch.inference_mode(False)
def synflow_masks(
    model: nn.Module,
    example_input: Any,
    sparsity: float,
    *,
    rounds: int = 100,
    parameters: Iterable[str] | None = None,
) -> dict[str, Tensor]:
    """Return which weights stay when the network is pruned by synaptic flow in many small rounds.

    After round k of n, `(1 - sparsity)^{k/n}` of the weights are left, those with the most flow in all layers together,
    scored without the weights already removed: Tanaka et al. (NeurIPS 2020, arXiv 2006.05467, algorithm 1). So no layer
    empties long before the others, as with one round. Biases have a flow of their own: where it outweighs that of the
    input (narrow layers, biases not 0), the layers below may empty all the same.

    Exactly `round(sparsity * N)` of N weights are removed; the published code may remove more where scores are equal. Of
    equal ones the earlier in the order of `model.named_parameters()` stays; removed weights do not return. A round is a
    forward and backward pass of one sample in float64; memory is some float64 copies of the network.

    Other arguments and errors are those of `synflow`. `sparsity` is the fraction of the scored weights removed, in [0, 1)
    (.999 is a compression by 1000); `rounds` is n, at least 1.

    Returns:
        Masks by parameter name, True = keep, bool, shape and device of the weight.

    Raises:
        ValueError: If `sparsity` or `rounds` is out of range.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Linear(1, 1, bias=False))
        >>> _ = model[0].weight.data.copy_(torch.tensor([[1.0, -3.0]]))
        >>> synflow_masks(model, torch.zeros(1, 2), 1 / 3)
        {'0.weight': tensor([[False,  True]]), '1.weight': tensor([[True]])}
    """
    check_sparsity(sparsity)
    if rounds < 1:
        raise ValueError(f"`rounds` must be at least 1, got {rounds}.")
    weights = chosen(model, parameters)
    sizes = [weight.numel() for weight in weights.values()]
    kept = torch.ones(sum(sizes), dtype=torch.bool, device=device_of(model))
    with borrowed(model, gradients=True):
        flow = _flow(model, weights, example_input)
        for k in range(1, rounds + 1):
            shares = flow(_cut(kept, weights))
            values = torch.cat([share.flatten().to(kept.device) for share in shares.values()])
            values[~kept] = -1.0  # below those that carry nothing but are still there
            now = sparsity if k == rounds else 1 - (1 - sparsity) ** (k / rounds)
            kept = keep_highest(values, num_kept(len(kept), now))
    return _cut(kept, weights)


def _cut(flat: Tensor, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the pieces of a long tensor in the shapes of the weights."""
    pieces = torch.split(flat, [weight.numel() for weight in weights.values()])
    return {
        name: piece.view(weight.shape).to(weight.device, copy=True)
        for (name, weight), piece in zip(weights.items(), pieces, strict=True)
    }


def _checked(model: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    weights = chosen(model, masks.keys()) if masks else {}
    for name, mask in masks.items():
        if name not in weights:
            raise ValueError(
                f"`masks` must have the names of `model.named_parameters()`, got {name!r}."
            )
        if mask.shape != weights[name].shape:
            raise ValueError(
                f"`masks` must have the shapes of the parameters, got {list(mask.shape)} for `{name}` of "
                f"{list(weights[name].shape)}."
            )
    return {name: mask.to(weights[name].device) != 0 for name, mask in masks.items()}


def _flow(
    model: nn.Module, weights: Mapping[str, Tensor], example_input: Any
) -> Callable[[Mapping[str, Tensor]], dict[str, Tensor]]:
    """Returns a function from masks to the shares of all weights in the flow, in float64."""
    device = device_of(model)
    tensors = {
        name: tensor.detach().to(torch.float64).abs()
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
        if tensor.is_floating_point()
    }
    inputs = mapped(lambda tensor: _ones(tensor, device), example_input)

    def shares(masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        used = dict(tensors)
        for name, mask in masks.items():
            used[name] = tensors[name] * mask
        scored = {name: used[name].detach().requires_grad_() for name in weights}
        used.update(scored)
        outputs = call_with(model, used, mapped(torch.clone, inputs))
        parts = [t.sum().to(device) for t in leaves(outputs) if t.is_floating_point()]
        whole = sum(parts, torch.zeros((), dtype=torch.float64, device=device))
        if not whole.requires_grad:
            raise ValueError(
                "the outputs of `model` must depend on a parameter that is scored, got some that do not."
            )
        scale = whole.detach().abs()  # below 0 only where a layer breaks the theory
        grads = torch.autograd.grad(whole, list(scored.values()), allow_unused=True)
        result = {
            name: _share(value.detach(), grad, scale.to(value.device))
            for (name, value), grad in zip(scored.items(), grads, strict=True)
        }
        if not all(value.isfinite().all() for value in (scale, *result.values())):
            raise ValueError(
                "the flow through `model` and its gradient must fit into float64, got "
                f"a flow of {float(scale)}: is it very deep, and not normalised?"
            )
        return result

    return shares


def _ones(tensor: Tensor, device: torch.device) -> Tensor:
    first = tensor[:1] if tensor.ndim else tensor
    if first.is_floating_point():
        return torch.ones_like(first, dtype=torch.float64, device=device)
    return first.detach().to(device, copy=True)


def _share(value: Tensor, grad: Tensor | None, whole: Tensor) -> Tensor:
    if grad is None or not whole:
        return torch.zeros_like(value)
    return (value * grad).abs() / whole
