"""Saliency from one gradient: how much the loss changes, to first order, when a weight is removed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_fairprune.criteria._mean import LossFn, mean_gradient
from lightning_fairprune.criteria._parameters import chosen, full_precision


@torch.inference_mode(False)
def gradient(
    model: nn.Module,
    batches: Iterable[Any],
    loss_fn: LossFn,
    *,
    parameters: Iterable[str] | None = None,
) -> dict[str, Tensor]:
    r"""Return the first-order change of the loss when each weight is set to 0, `|\theta g|`.

    g is the gradient of the mean loss over all samples of `batches`, in eval mode: dropout and batch statistics would
    make the saliency random. The codes published with Good et al., "Recall Distortion in Neural Network Pruning and the
    Undecayed Pruning Algorithm" (NeurIPS 2022), and with ShrinkBench take one batch in train mode. At initialisation,
    first run some batches in train mode so that the running statistics of normalisation layers fit the data.

    One forward and backward pass per batch, and the memory of a copy of the model. With torch.distributed, ranks score
    their own batches and all get the same saliency.

    Args:
        model: The network itself, without a wrapper for several processes.
        batches: Pairs (inputs, target), which are moved to the model's device. Inputs are a tensor, a tuple or list
            (positional arguments) or a mapping (named ones); their first tensor has the size of the batch.
        loss_fn: (outputs, target) -> mean loss over the batch, scalar.
        parameters: Names of the parameters to score; None takes those of `prunable`.

    Returns:
        As `magnitude`; 0 where the loss does not depend on the weight.

    Raises:
        ValueError: If there are no batches, a name is unknown, there is no weight to score, or the loss is no
            scalar, not finite, or does not depend on any of the weights.
        TypeError: If `loss_fn` returns no tensor.

    Example:
        The mean output of a linear model: g is the mean input, (2, 1).

        >>> model = nn.Linear(2, 1, bias=False)
        >>> _ = model.weight.data.copy_(torch.tensor([[2.0, -3.0]]))
        >>> batch = (torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.zeros(2))
        >>> gradient(model, [batch], lambda outputs, target: outputs.mean())
        {'weight': tensor([[4., 3.]])}
    """
    weights = chosen(model, parameters)
    grads = mean_gradient(model, weights, batches, loss_fn)
    return {name: (full_precision(w) * grads[name]).abs() for name, w in weights.items()}


@torch.inference_mode(False)
def snip(
    model: nn.Module,
    batches: Iterable[Any],
    loss_fn: LossFn,
    *,
    parameters: Iterable[str] | None = None,
) -> dict[str, Tensor]:
    r"""Return the share of each weight in the sensitivity of all, `|\theta g| / \sum |\theta g|`.

    Lee et al., "SNIP: Single-shot network pruning based on connection sensitivity" (ICLR 2019, arXiv 1810.02340), who
    use it once, at initialisation. It ranks weights as `gradient` does, with its arguments and errors, in [0, 1] with the
    sum 1; all 0 if every gradient is 0.

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> _ = model.weight.data.copy_(torch.tensor([[1.0, -3.0]]))
        >>> snip(model, [(torch.ones(1, 2), None)], lambda outputs, target: outputs.mean())
        {'weight': tensor([[0.2500, 0.7500]])}
    """
    saliency = gradient(model, batches, loss_fn, parameters=parameters)
    whole = sum(float(value.sum(dtype=torch.float64)) for value in saliency.values())
    return {name: value / whole if whole else value for name, value in saliency.items()}


@torch.inference_mode(False)
def undecayed(
    model: nn.Module,
    batches: Iterable[Any],
    loss_fn: LossFn,
    *,
    weight_decay: float | Mapping[str, float],
    form: Literal["code", "paper"] = "code",
    parameters: Iterable[str] | None = None,
) -> dict[str, Tensor]:
    r"""Return the first-order change of the loss, without the part that is due to weight decay.

    `|-\theta G + \epsilon \theta^2|`: Good et al., "Recall Distortion in Neural Network Pruning and the Undecayed
    Pruning Algorithm" (NeurIPS 2022, section 3). The two forms differ in what G is the gradient of:

    * `"code"`: the data loss, as in the published code and results. After convergence, `G = -\epsilon \theta`, it ranks
      as `magnitude` does.
    * `"paper"`: the loss with its decay, `loss + \epsilon/2 ||\theta||^2`, as in the formula. The decay cancels, and
      this is `gradient`, up to rounding.

    Other arguments, result and errors are those of `gradient`; `loss_fn` is the data loss, without decay. `weight_decay` is
    the epsilon >= 0 of training, one number or one by parameter name, as `weight_decay_of` reads it from an optimiser;
    the published code has 5e-4 fixed.

    Raises:
        ValueError: If `weight_decay` is negative or lacks a parameter, or `form` is neither.

    Example:
        g = (1, 1) and epsilon = .5: `|-2 + .5 * 4| = 0`, `|3 + .5 * 9| = 7.5`.

        >>> model = nn.Linear(2, 1, bias=False)
        >>> _ = model.weight.data.copy_(torch.tensor([[2.0, -3.0]]))
        >>> batches = [(torch.ones(1, 2), None)]
        >>> undecayed(model, batches, lambda outputs, target: outputs.mean(), weight_decay=0.5)
        {'weight': tensor([[0.0000, 7.5000]])}
    """
    if form not in ("code", "paper"):
        raise ValueError(f"`form` must be 'code' or 'paper', got {form!r}.")
    weights = chosen(model, parameters)
    decay = _decay(weight_decay, weights)
    values = {name: full_precision(weight) for name, weight in weights.items()}
    grads = mean_gradient(model, weights, batches, loss_fn)
    if form == "paper":
        grads = {name: grads[name] + part for name, part in _penalty(values, decay).items()}
    return {name: (-v * grads[name] + decay[name] * v.square()).abs() for name, v in values.items()}


def weight_decay_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Return the weight decay of each parameter in an optimiser, by name; 0 for parameters that it does not have.

    For SGD it is epsilon of `undecayed`. AdamW decays weights apart from the gradient, so there it is an approximation.

    Raises:
        ValueError: If the optimiser has none of the model's parameters.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> groups = [{"params": [model.weight], "weight_decay": 5e-4}, {"params": [model.bias]}]
        >>> weight_decay_of(model, torch.optim.SGD(groups, lr=0.1))
        {'weight': 0.0005, 'bias': 0.0}
    """
    found = {
        id(parameter): group.get("weight_decay", 0.0)
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    named = dict(model.named_parameters())
    if not any(id(parameter) in found for parameter in named.values()):
        raise ValueError(
            "`optimizer` must hold parameters of `model`, got one that has none of them."
        )
    return {name: float(found.get(id(parameter), 0.0)) for name, parameter in named.items()}


def _decay(weight_decay: float | Mapping[str, float], names: Iterable[str]) -> dict[str, float]:
    if not isinstance(weight_decay, Mapping):
        weight_decay = dict.fromkeys(names, weight_decay)
    missing = [name for name in names if name not in weight_decay]
    if missing:
        raise ValueError(
            f"`weight_decay` must have a number for every parameter that is scored, got none for {missing[0]!r}."
        )
    decay = {name: float(weight_decay[name]) for name in names}
    for name, value in decay.items():
        if not (value >= 0 and math.isfinite(value)):
            raise ValueError(f"`weight_decay` must be finite and >= 0, got {value} for {name!r}.")
    return decay


def _penalty(values: Mapping[str, Tensor], decay: Mapping[str, float]) -> dict[str, Tensor]:
    """Returns the gradient of `eps/2 ||theta||^2`; gradients add up, so it is taken once, not in every batch."""
    with torch.inference_mode(False), torch.enable_grad():
        inputs = {name: value.clone().requires_grad_() for name, value in values.items()}
        # Parameters may be on several devices: their sums are added up by their gradients only.
        parts = [decay[name] / 2 * value.square().sum() for name, value in inputs.items()]
        return dict(zip(values, torch.autograd.grad(parts, list(inputs.values())), strict=True))
