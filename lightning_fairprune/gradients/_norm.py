"""Gradient norms of a whole network: the exact GraNd score."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_fairprune._model.batches import Batch
from lightning_fairprune._model.borrowed import borrowed
from lightning_fairprune._model.parameters import named
from lightning_fairprune.gradients._functional import one_by_one
from lightning_fairprune.gradients._loss import Loss
from lightning_fairprune.gradients._plan import Plan, make_plan


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
    eval mode meanwhile, as in the code published with DRoP.

    One batched forward and backward pass for most networks. Linear, convolution, normalisation, embedding and
    attention layers of torch give their norms from inputs and output gradients; other parameters take
    torch.func, and what it cannot do takes a pass per sample, with a warning. Parameters that are used several
    times count as one. Which way is right is tried on two samples of the first batch with more than one, and compared there
    with each sample alone; nothing has to be declared.

    The model is left as it was: weights, buffers, attributes, mode, gradients, flags, hooks. So are random states.

    Args:
        model: The network f itself, without a wrapper for several processes. It is called with a tensor, with the entries of a tuple or list as positional
            arguments, or with those of a mapping as named arguments.
        batches: (input, target) pairs, such as a DataLoader without shuffling yields. Every tensor in
            them has the samples along its first axis; they are brought to the model's device.
        loss_fn: (outputs, target) -> one loss per sample [B], or a scalar: mean, sum, weighted mean. The loss of
            a sample is what `loss_fn` gives for a batch of that sample alone: a mean over one, so that the
            class weights of a weighted mean cancel.
        parameters: Names or parameters w, for example `model.fc.parameters()`; None takes those that require
            a gradient. Only the layers above the first of them take part in the backward pass.
        memory: Bytes of temporary memory on top of those of a forward and backward pass. It does not change
            the result by more than rounding.

    Returns:
        Norms in [0, inf), higher = harder, in the order of the samples, on the model's device, float32
        (float64 for a float64 model), [N].

    Raises:
        ValueError: If a sample's loss depends on other samples, is random, or is not finite; if a parameter is
            not found, there is none, or `batches` is empty or does not yield what it must.
        TypeError: If `loss_fn` returns no tensor.

    Example:
        Linear softmax model: the gradient is (p - y) x^T, as long as ||p - y|| ||x||. All weights 0 give even
        odds, p - y = (.5, -.5), and the samples are 5 and 10 long: sqrt(.5) * 5 and sqrt(.5) * 10.

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
    plan: Plan | None = None
    done = 0
    with borrowed(model, gradients=True):
        for raw in batches:
            batch = Batch.of(raw, device)
            batch.check_rows()
            if plan is None and batch.size > 1:
                plan = make_plan(model, chosen, batch.rows(slice(2)), loss_fn, memory)
                _say_if_slow(plan)
            if plan is None:
                losses, norms2 = one_by_one(model, chosen, batch, Loss(loss_fn))
            else:
                losses, norms2 = plan.norms2(model, chosen, batch)
            _check_finite(losses, norms2, done)
            done += batch.size
            norms.append(norms2.to(torch.promote_types(norms2.dtype, torch.float32)))
    if not norms:
        raise ValueError("`batches` must hold at least one batch, got none.")
    return torch.cat(norms).clamp_min(0).sqrt()


def _chosen(
    model: nn.Module, parameters: Iterable[str] | Iterable[nn.Parameter] | None
) -> dict[str, nn.Parameter]:
    """Returns the parameters by name, each once."""
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


def _say_if_slow(plan: Plan) -> None:
    if plan.rest and not plan.batched:
        more = f" and {len(plan.rest) - 3} more" if len(plan.rest) > 3 else ""
        warnings.warn(
            "`grad_norm` takes one backward pass per sample, which is right but slow: torch.func cannot do "
            f"{', '.join(plan.rest[:3])}{more} in batches. Choose other `parameters` to be faster.",
            stacklevel=3,
        )


def _check_finite(losses: Tensor, norms2: Tensor, done: int) -> None:
    bad = ~(losses.isfinite() & norms2.isfinite())
    if bad.any():
        i = int(bad.nonzero()[0])
        raise ValueError(
            "every sample's loss and gradient must be finite, got a loss of "
            f"{float(losses[i])} and a squared norm of {float(norms2[i])} for sample {done + i}."
        )
