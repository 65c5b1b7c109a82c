"""FairPrune: keep the weights that matter to the group served worse, remove those that matter to the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import jacrev, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_fairprune._model.batches import Batch
from lightning_fairprune._model.borrowed import device_of
from lightning_fairprune._model.trees import call_with, leaves, mapped
from lightning_fairprune.criteria._groups import Groups, check_present, parts
from lightning_fairprune.criteria._mean import LossFn, check_finite, over_batches, scalar
from lightning_fairprune.criteria._parameters import chosen, full_precision

_MEMORY = 2**28  # bytes of gradients of single samples at a time


@torch.inference_mode(False)
def fairprune(
    model: nn.Module,
    batches: Iterable[Any],
    loss_fn: LossFn,
    *,
    groups: Groups,
    beta: float = 0.33,
    parameters: Iterable[str] | None = None,
) -> dict[str, Tensor]:
    r"""Return what each weight is worth to one group, less what it is worth to another.

    `\theta^2 / 2 (h_0 - \beta h_1)`: Wu et al., "FairPrune: Achieving Fairness Through Pruning for Dermatological
    Disease Diagnosis" (MICCAI 2022, arXiv 2203.02110). `h_g` is the second derivative of the mean loss of group g by each
    weight, in the Gauss-Newton form of the published codes: the exact diagonal of `J^T H J`, averaged over the samples,
    with J the derivative of a sample's outputs by the weights and H that of its loss by the outputs. Negative where group
    1 outweighs: weights that serve group 1 alone are removed first.

    Slow, and meant for small networks or a few hundred samples: as many backward passes per sample as there are
    outputs, by torch.func, in blocks of 256 MiB. Ranks, result and other errors are as for `gradient`.

    Args:
        model: The network; returns one tensor, the samples along its first axis.
        batches: Pairs (inputs, target); every tensor with the samples along its first axis.
        loss_fn: (outputs, target) -> mean loss over the batch, scalar, twice differentiable; called for one sample at a
            time, by torch.func.
        groups: Batch, as `batches` yields it -> 0 for samples of the group to protect (the one with the lower
            accuracy), 1 for those of the other, integer, [B].
        beta: Weight of group 1, >= 0.
        parameters: Names of the parameters to score.

    Raises:
        ValueError: If an id is neither 0 nor 1, a group has no sample, or `beta` is negative.
        TypeError: If ids or outputs are no tensors.

    Example:
        Squared error of a linear model: J = x and H = 2, so `h_0 = 2 (1, 0)` and `h_1 = 2 (4, 1)`;
        `2^2 / 2 (2 - 8 / 2) = -4` and `3^2 / 2 (0 - 2 / 2) = -4.5`.

        >>> model = nn.Linear(2, 1, bias=False)
        >>> _ = model.weight.data.copy_(torch.tensor([[2.0, -3.0]]))
        >>> batch = (torch.tensor([[1.0, 0.0], [2.0, 1.0]]), torch.zeros(2, 1))
        >>> fairprune(model, [batch], nn.MSELoss(), groups=lambda b: torch.tensor([0, 1]), beta=0.5)
        {'weight': tensor([[-4.0000, -4.5000]])}
    """
    if not (beta >= 0 and math.isfinite(beta)):
        raise ValueError(f"`beta` must be finite and >= 0, got {beta}.")
    weights = chosen(model, parameters)
    values = {name: full_precision(weight).clone() for name, weight in weights.items()}
    sums = [{name: torch.zeros_like(value) for name, value in values.items()} for _ in (0, 1)]
    seen = torch.zeros(2, dtype=torch.int64, device=device_of(model))

    def add(batch: Batch, raw: Any) -> Tensor:
        losses = []
        for g, part in parts(batch, raw, groups, 2):
            loss, curvature = _curvature(model, weights, part, loss_fn)
            for name, value in curvature.items():
                sums[g][name] += value
            seen[g] += part.size
            losses.append(loss)
        return torch.stack(losses).sum()

    over_batches(model, batches, add, seen, [*sums[0].values(), *sums[1].values()])
    check_present(seen)
    result = {}
    for name, value in values.items():
        h0, h1 = (sums[g][name] / seen[g].to(value.device) for g in (0, 1))
        result[name] = value.square() / 2 * (h0 - beta * h1)
    check_finite(result)
    return result


def _curvature(
    model: nn.Module, weights: Mapping[str, nn.Parameter], batch: Batch, loss_fn: LossFn
) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns the summed loss of the samples, and the sum of the diagonals of their Gauss-Newton matrices."""
    with torch.no_grad():
        outputs = batch.through(model)
    if not isinstance(outputs, Tensor):
        raise TypeError(f"`model` must return a tensor, got {type(outputs).__name__}.")
    if outputs.ndim == 0 or len(outputs) != batch.size:
        raise ValueError(
            "the outputs of `model` must have the samples along their first axis, got shape "
            f"{list(outputs.shape)} for {batch.size} samples."
        )
    # Bytes of the derivative of one output of one sample by all weights.
    single = sum(w.numel() * full_precision(w[:0]).element_size() for w in weights.values())
    columns = max(1, min(outputs[0].numel(), _MEMORY // single))
    rows = max(1, _MEMORY // (columns * single))
    one = _of_one(model, weights, batch, loss_fn, columns)
    loss = torch.zeros((), device=outputs.device)
    sums = {name: torch.zeros_like(full_precision(w)) for name, w in weights.items()}
    pieces = [torch.split(t, rows) for t in leaves((batch.inputs, batch.target))]
    for piece in zip(*pieces, strict=True):
        # torch.func differentiates all the same, by the weights alone; it cannot do fused attention.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            of_each, squares = vmap(one, randomness="different")(*piece)
        loss = loss + of_each.sum()
        for name, value in squares.items():
            sums[name] += value.sum(0)
    return loss, sums


def _of_one(
    model: nn.Module,
    weights: Mapping[str, nn.Parameter],
    batch: Batch,
    loss_fn: LossFn,
    columns: int,
) -> Callable[..., tuple[Tensor, dict[str, Tensor]]]:
    """Returns a function from the tensors of one sample to its loss and the diagonal of `J^T H J`."""
    frozen = {name: weight.detach() for name, weight in weights.items()}
    others = {
        name: tensor.detach()
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
        if name not in frozen
    }

    def one(*tensors: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        rest = iter(tensors)
        inputs, target = mapped(lambda _: next(rest).unsqueeze(0), (batch.inputs, batch.target))

        def outputs_of(theta: dict[str, Tensor]) -> Tensor:
            # A layer may write to its own tensors, which torch.func allows only to those made inside.
            every = {name: tensor.clone() for name, tensor in others.items()} | theta
            outputs: Tensor = call_with(model, every, inputs)
            return outputs.squeeze(0)

        def loss_of(outputs: Tensor) -> Tensor:
            return scalar(loss_fn(outputs.unsqueeze(0), target))

        outputs, pull = vjp(outputs_of, frozen)[:2]
        flat = outputs.flatten()
        second = jacrev(jacrev(lambda z: loss_of(z.view(outputs.shape))))(flat)
        # H = sum_c l_c v_c v_c^T, so the diagonal is sum_c l_c (J^T v_c)^2.
        scale, vectors = torch.linalg.eigh(full_precision(second))
        squares = {name: torch.zeros_like(full_precision(w)) for name, w in frozen.items()}
        for some, v in zip(
            torch.split(scale, columns), torch.split(vectors.mT, columns), strict=True
        ):
            pulled = vmap(pull)(v.to(flat.dtype).view(-1, *outputs.shape))[0]
            for name, grad in pulled.items():
                square = full_precision(grad).square()
                squares[name] = squares[name] + torch.einsum("c,c...->...", some.to(square), square)
        return loss_of(outputs), squares

    return one
