"""FairGRAPE: every group keeps its share in the importance of each layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_fairprune._model.batches import Batch
from lightning_fairprune._model.borrowed import device_of
from lightning_fairprune.criteria._exact import check_sparsity, num_kept
from lightning_fairprune.criteria._groups import Groups, check_present, parts
from lightning_fairprune.criteria._mean import LossFn, check_finite, gradients, over_batches
from lightning_fairprune.criteria._parameters import chosen, full_precision


@torch.inference_mode(False)
def group_importance(
    model: nn.Module,
    batches: Iterable[Any],
    loss_fn: LossFn,
    *,
    num_groups: int,
    groups: Groups | None = None,
    parameters: Iterable[str] | None = None,
) -> dict[str, Tensor]:
    r"""Return how much each weight matters to each group.

    `I_g(w) = mean_b (\theta \partial L_{b,g} / \partial \theta)^2`, where `L_{b,g}` is the loss of the samples of group g
    in batch b and the mean is over the batches that have some: Lin, Kim and Joo, "FairGRAPE: Fairness-aware GRAdient
    Pruning mEthod for Face Attribute Classification" (ECCV 2022, arXiv 2207.10888). The published code instead adds up
    the gradients of groups and batches before squaring, trains while it scores, in train mode, and divides by all
    batches even if a group was in few. I_g depends on the batch size: squares of noisy gradients are larger than those
    of the mean. Memory: `num_groups` copies of the scored weights.

    Model, parameters, ranks and the other errors are as for `gradient`.

    Args:
        model: The network.
        batches: Pairs (inputs, target); every tensor with the samples along its first axis.
        loss_fn: (outputs, target) -> mean loss over the batch, scalar; called for the samples of one group at a time.
        num_groups: Number of groups G, at least 1.
        groups: Batch, as `batches` yields it -> group ids in [0, G), integer [B]; None takes the target.
        parameters: Names of the parameters to score.

    Returns:
        Importance >= 0 by parameter name, [G, *shape of the weight].

    Raises:
        ValueError: If an id is out of range or a group has no sample in any batch.
        TypeError: If ids are no tensor.

    Example:
        One sample per group, g = x: (2 * 1)^2 and (-3 * 1)^2 for the first, (2 * 2)^2 and 0 for the second.

        >>> model = nn.Linear(2, 1, bias=False)
        >>> _ = model.weight.data.copy_(torch.tensor([[2.0, -3.0]]))
        >>> batch = (torch.tensor([[1.0, 1.0], [2.0, 0.0]]), torch.tensor([0, 1]))
        >>> group_importance(model, [batch], lambda outputs, target: outputs.mean(), num_groups=2)
        {'weight': tensor([[[ 4.,  9.]],
        <BLANKLINE>
                [[16.,  0.]]])}
    """
    if num_groups < 1:
        raise ValueError(f"`num_groups` must be at least 1, got {num_groups}.")
    weights = chosen(model, parameters)
    values = {name: full_precision(weight).clone() for name, weight in weights.items()}
    sums = {
        name: torch.zeros(num_groups, *value.shape, dtype=value.dtype, device=value.device)
        for name, value in values.items()
    }
    seen = torch.zeros(num_groups, dtype=torch.int64, device=device_of(model))

    def add(batch: Batch, raw: Any) -> Tensor:
        losses = []
        for g, part in parts(batch, raw, groups, num_groups):
            loss, grads = gradients(model, weights, part, loss_fn)
            for name, grad in grads.items():
                sums[name][g] += (values[name] * grad).square()
            seen[g] += 1
            losses.append(loss)
        return torch.stack(losses).sum()

    over_batches(model, batches, add, seen, sums.values())
    check_present(seen)
    for value in sums.values():
        value /= seen.to(value.device).view(-1, *[1] * (value.ndim - 1))
    check_finite(sums)
    return sums


@torch.inference_mode(False)
def fairgrape_masks(
    model: nn.Module,
    batches: Iterable[Any],
    loss_fn: LossFn,
    sparsity: float | Mapping[str, float],
    *,
    num_groups: int,
    groups: Groups | None = None,
    block: int | None = None,
    parameters: Iterable[str] | None = None,
) -> dict[str, Tensor]:
    r"""Return which weights stay so that every group keeps its share in the importance of each layer.

    In the dense layer group g has the share `\sum_w I_g(w) / \sum_{g'} \sum_w I_{g'}(w)` of the importance I of
    `group_importance`. Starting from no weights, the group that is furthest below its share among the weights kept so far
    has its most important weight kept next: Lin, Kim and Joo, "FairGRAPE" (ECCV 2022, arXiv 2207.10888, algorithm 1).
    Shares are kept, not evened out: a group that the dense network serves badly stays badly served.

    Exactly `round(sparsity * n)` of the n weights of each parameter are removed. The published code gives every layer
    the same sparsity. The paper prunes in rounds with training in between: call this after each, with a growing sparsity.
    Memory: on top of `group_importance`, up to `2 * num_groups` copies of the largest layer, for sorting.

    Other arguments and errors are those of `group_importance`. `sparsity` is the fraction of weights removed from each
    parameter, in [0, 1), one for all or one by parameter name. `block` is the number of weights kept per decision, at
    least 1: 1 is the paper's algorithm, a Python step per weight; None takes .5 % of those kept, 200 decisions a layer.

    Returns:
        Masks by parameter name, True = keep, bool, shape and device of the weight.

    Raises:
        ValueError: If `sparsity` or `block` is out of range, or `sparsity` lacks a parameter.

    Example:
        Group 0 owns 13/29 of the importance (4 + 9, 0 + 16): group 1 comes first with the weight worth 16 to it,
        which is worth 4 to group 0. Group 0 then has 4/20, below its share, and the weight worth 9 to it follows.

        >>> model = nn.Linear(3, 1, bias=False)
        >>> _ = model.weight.data.copy_(torch.tensor([[2.0, -3.0, 9.0]]))
        >>> batch = (torch.tensor([[1.0, 1.0, 0.0], [2.0, 0.0, 0.0]]), torch.tensor([0, 1]))
        >>> fairgrape_masks(
        ...     model, [batch], lambda outputs, target: outputs.mean(), 1 / 3, num_groups=2
        ... )
        {'weight': tensor([[ True,  True, False]])}
    """
    if block is not None and block < 1:
        raise ValueError(f"`block` must be at least 1, got {block}.")
    weights = chosen(model, parameters)
    if not isinstance(sparsity, Mapping):
        sparsity = dict.fromkeys(weights, sparsity)
    missing = [name for name in weights if name not in sparsity]
    if missing:
        raise ValueError(
            f"`sparsity` must have a number for every parameter that is pruned, got none for {missing[0]!r}."
        )
    for name in weights:
        check_sparsity(sparsity[name])
    importance = group_importance(
        model, batches, loss_fn, num_groups=num_groups, groups=groups, parameters=weights
    )
    masks = {}
    for name, weight in weights.items():
        kept = num_kept(weight.numel(), sparsity[name])
        flat = importance.pop(name).flatten(1)
        masks[name] = _keep_shares(flat, kept, block or max(1, round(kept / 200))).view(
            weight.shape
        )
    return masks


def _keep_shares(importance: Tensor, count: int, block: int) -> Tensor:
    """Returns a mask [n] of `count` weights from importances [G, n]; of equal weights, the earlier stay."""
    dense = importance.sum(1, dtype=torch.float64).cpu()
    share = dense / dense.sum()
    # A group to which no weight matters asks for none.
    idle = ~(dense > 0)
    sums = torch.zeros_like(dense)
    taken = torch.zeros_like(importance[0], dtype=torch.bool)
    orders: dict[int, Tensor] = {}
    starts = [0] * len(dense)
    while count:
        now = sums / sums.sum() if sums.any() else torch.full_like(sums, 1 / len(sums))
        g = int((now - share).masked_fill(idle, torch.inf).argmin())
        if g not in orders:
            orders[g] = importance[g].sort(descending=True, stable=True).indices
        picked, starts[g] = _next(orders[g], taken, starts[g], min(block, count))
        taken[picked] = True
        sums += importance[:, picked].sum(1, dtype=torch.float64).cpu()
        count -= len(picked)
    return taken


def _next(order: Tensor, taken: Tensor, start: int, count: int) -> tuple[Tensor, int]:
    """Returns the first `count` of an order that are not taken, from `start` on, and where to continue."""
    width = count
    while True:
        window = order[start : start + width]
        free = (~taken[window]).nonzero().flatten()[:count]
        if len(free) == count:
            return window[free], start + int(free[-1]) + 1
        width *= 2
