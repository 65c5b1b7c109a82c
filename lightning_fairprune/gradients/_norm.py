"""Gradient norms of a whole network: the exact GraNd score."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_fairprune._model.batches import Batch
from lightning_fairprune._model.borrowed import borrowed
from lightning_fairprune._model.parameters import named
from lightning_fairprune.gradients._loss import Loss
from lightning_fairprune.gradients._way import Way


def grad_norm(
    model: nn.Module,
    batches: Iterable[Any],
    loss_fn: Callable[[Any, Any], Tensor] = F.cross_entropy,
    *,
    parameters: Iterable[str] | Iterable[nn.Parameter] | None = None,
    memory: int = 2**28,
) -> Tensor:
    r"""Return the length of the gradient of each sample's own loss, exactly, batch by batch.

    `||\nabla_w loss(f_w(x_i), y_i)||_2`: the GraNd score of Paul et al., "Deep Learning on a Data Diet"
    (NeurIPS 2021, arXiv 2107.07075, definition 2.1) for one network; average it over several. The model is in
    eval mode meanwhile, as in the code published with DRoP; it and the random states are restored.

    One batched forward and backward pass for most networks, in which torch.vmap shows each sample to the model and the
    loss as a batch of one: what sorts, mixes or chooses samples sees one. Linear, convolution, normalisation, embedding,
    attention and recurrent functions of torch give their norms from inputs and output gradients; elsewhere each sample has
    its own copy of a parameter. What torch.vmap cannot do (packed sequences, branches that depend on the values) takes a
    backward pass per sample, with a warning. The model starts each sample with the buffers and attributes it came with.

    Args:
        model: The network f itself, without a wrapper for several processes. It is called with a tensor, the entries
            of a tuple or list as positional arguments, or those of a mapping as named ones.
        batches: (input, target) pairs, such as a DataLoader without shuffling yields. Every tensor in
            them has the samples along its first axis; they are moved to the model's device.
        loss_fn: (outputs, target) -> one loss per sample [B], or a scalar: mean, sum, weighted mean. The loss of
            a sample is that of a batch of one, in which the class weights of a weighted mean cancel.
        parameters: Names or parameters w, for example `model.fc.parameters()`; None takes those that require
            a gradient. Only the layers above the first of them take part in the backward pass.
        memory: Bytes of temporary memory on top of those of a forward and backward pass; results differ by rounding.

    Returns:
        Norms in [0, inf), higher = harder, in the order of the samples, on the model's device, float32
        (float64 for a float64 model), [N].

    Raises:
        ValueError: If a sample's loss depends on other samples, is random, or is not finite; if a parameter is
            not found, there is none, or `batches` is empty or does not yield such pairs.
        TypeError: If `loss_fn` returns no tensor.

    Example:
        The gradient of a linear softmax model, (p - y) x^T, has length ||p - y|| ||x||. With all weights 0, p - y is
        (.5, -.5), and the samples have lengths 5 and 10: sqrt(.5) * 5 and sqrt(.5) * 10.

        >>> model = torch.nn.Linear(2, 2, bias=False)
        >>> _ = torch.nn.init.zeros_(model.weight)
        >>> batch = (torch.tensor([[3.0, 4.0], [6.0, 8.0]]), torch.tensor([0, 1]))
        >>> grad_norm(model, [batch], torch.nn.CrossEntropyLoss())
        tensor([3.5355, 7.0711])
    """
    if memory < 1:
        raise ValueError(f"`memory` must be a positive number of bytes, got {memory}.")
    chosen = _chosen(model, parameters)
    device = next(iter(chosen.values())).device
    norms: list[Tensor] = []
    done = 0
    with borrowed(model, gradients=True):
        way = Way(model, chosen.values(), Loss(loss_fn), memory)
        for raw in batches:
            batch = Batch.of(raw, device)
            batch.check_rows()
            losses, norms2 = way.norms2(batch)
            _check_finite(losses, norms2, done)
            done += batch.size
            norms.append(norms2.to(torch.promote_types(norms2.dtype, torch.float32)))
    if not norms:
        raise ValueError("`batches` must hold at least one batch, got none.")
    return torch.cat(norms).clamp_min(0).sqrt()


def _chosen(
    model: nn.Module, parameters: Iterable[str] | Iterable[nn.Parameter] | None
) -> dict[str, nn.Parameter]:
    trained = parameters is None
    if parameters is None:
        parameters = [name for name, value in model.named_parameters() if value.requires_grad]
    chosen = named(model, parameters)
    if not chosen:
        raise ValueError(
            "`parameters` must name at least one parameter, got none"
            + (" that requires a gradient." if trained else ".")
        )
    return chosen


def _check_finite(losses: Tensor, norms2: Tensor, done: int) -> None:
    bad = ~(losses.isfinite() & norms2.isfinite())
    if bad.any():
        i = int(bad.nonzero()[0])
        raise ValueError(
            "every sample's loss and gradient must be finite, got a loss of "
            f"{float(losses[i])} and a squared norm of {float(norms2[i])} for sample {done + i}."
        )
