"""From saliency to masks: the four ways to spread one sparsity over the layers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_fairprune.masks._arguments import Masks, Task, Tensors, task
from lightning_fairprune.quotas import apportion


def globally(
    saliency: Tensors, sparsity: float, *, floor: int = 0, keep: Tensors | None = None
) -> Masks:
    """Return masks that remove the least salient weights of all layers in one ranking.

    At high sparsity a layer may lose all of its weights, and the network with it: see `floor`.

    Args:
        saliency: Saliency of each weight by the name of its parameter, float tensors, higher = keep.
        sparsity: Fraction of all weights in `saliency` to remove, in [0, 1), those removed already included.
        floor: Weights that each layer keeps at least, or all it has left.
        keep: Earlier masks; what they removed stays removed.

    Returns:
        Bool masks, True = kept, with the names, shapes and devices of `saliency`. Of equal saliencies the first are
        removed, in the order of the mapping and then of the flat index.

    Raises:
        TypeError: If a saliency is not a float tensor.
        ValueError: If an argument is out of range, a saliency is NaN, `keep` does not fit, or `floor` or
            `keep` and `sparsity` contradict each other.

    Example:
        >>> saliency = {"a": torch.tensor([0.1, 0.2]), "b": torch.tensor([0.8, 0.9])}
        >>> globally(saliency, 0.5)
        {'a': tensor([False, False]), 'b': tensor([True, True])}
        >>> globally(saliency, 0.5, floor=1)  # a[1] is the last of its layer
        {'a': tensor([False,  True]), 'b': tensor([False,  True])}
    """
    return _ranked(task(saliency, sparsity, floor, keep))


def per_layer(
    saliency: Tensors, sparsity: float, *, floor: int = 0, keep: Tensors | None = None
) -> Masks:
    """Return masks that remove the same fraction of every layer, the least salient weights of each.

    Where the fraction is no whole number of weights, layers are rounded so that the total is exact. Arguments, result and
    errors are those of :func:`globally`.

    Example:
        >>> saliency = {"a": torch.tensor([0.1, 0.2]), "b": torch.tensor([0.8, 0.9])}
        >>> per_layer(saliency, 0.5)
        {'a': tensor([False,  True]), 'b': tensor([False,  True])}
    """
    todo = task(saliency, sparsity, floor, keep)
    return _shared(todo, {name: float(value.numel()) for name, value in todo.saliency.items()})


def erk(
    saliency: Tensors, sparsity: float, *, floor: int = 0, keep: Tensors | None = None
) -> Masks:
    r"""Return masks that keep large layers sparser than small ones, the Erdős-Rényi-kernel way.

    The density of a layer is proportional to :math:`\sum_i d_i / \prod_i d_i` over the sizes :math:`d_i` of its weight, so
    the weights it keeps are proportional to :math:`\sum_i d_i`; a layer that would keep more than it has stays dense (Evci
    et al., ICML 2020, arXiv:1911.11134, section 3). Inside a layer the least salient weights are removed. Arguments, result
    and errors are those of :func:`globally`.

    Example:
        4 : 16 shares the 17 weights that stay as 3.4 : 13.6.

        >>> masks = erk({"a": torch.rand(2, 2), "b": torch.rand(8, 8)}, 0.75)
        >>> {name: int(mask.sum()) for name, mask in masks.items()}
        {'a': 3, 'b': 14}
    """
    todo = task(saliency, sparsity, floor, keep)
    return _shared(todo, {name: float(sum(v.shape) or 1) for name, v in todo.saliency.items()})


def lamp(
    saliency: Tensors, sparsity: float, *, floor: int = 0, keep: Tensors | None = None
) -> Masks:
    r"""Return masks that rank all layers together by their layer-adaptive scores.

    :math:`\mathrm{score}(u) = s_u^2 / \sum_{v : s_v \ge s_u} s_v^2`, the sum over the weights of the same layer that are
    not removed before :math:`u` (Lee et al., ICLR 2021, arXiv:2010.07611, where the saliency :math:`s` is the magnitude).
    The most salient weight of each layer scores 1, so no layer is emptied before all others are down to one.

    Arguments, result and errors are those of :func:`globally`; what `keep` removed counts in no sum, and a
    negative or infinite saliency is a ValueError, too.

    Example:
        >>> saliency = {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([0.3, 0.4])}
        >>> lamp(saliency, 0.5)  # scores 9/25 and 1 in both layers
        {'a': tensor([False,  True]), 'b': tensor([False,  True])}
    """
    todo = task(saliency, sparsity, floor, keep)
    for name, value in todo.saliency.items():
        if not bool(((value >= 0) & value.isfinite()).all()):
            raise ValueError(
                f"`lamp` squares the saliency, so it must be finite and 0 or more; that of `{name}` "
                "is not."
            )
    scores = {name: _lamp(value, todo.kept[name]) for name, value in todo.saliency.items()}
    return _ranked(Task(scores, todo.kept, todo.remaining, todo.floors))


def _lamp(saliency: Tensor, kept: Tensor) -> Tensor:
    squared = saliency.double().square().masked_fill(~kept, 0).flatten()
    ascending, order = squared.sort(stable=True)
    # On the host: sums along an axis differ from run to run on GPUs, and so would ranks.
    rest = ascending.cpu().flip(0).cumsum(0).flip(0).to(ascending.device)
    scores = torch.where(rest > 0, ascending / rest, 0.0)
    return torch.empty_like(scores).index_copy_(0, order, scores).view_as(saliency)


def _ranked(todo: Task) -> Masks:
    """Removes the lowest of all layers together, but for the highest `floor` of each layer."""
    device = next(iter(todo.saliency.values())).device
    kept = torch.cat([mask.flatten().to(device) for mask in todo.kept.values()])
    values = torch.cat([value.flatten().to(device) for value in todo.saliency.values()])
    safe = [
        _highest(value.flatten(), todo.kept[name].flatten(), todo.floors[name]).to(device)
        for name, value in todo.saliency.items()
    ]
    excess = int(kept.sum()) - todo.remaining
    kept &= ~_lowest(values, kept & ~torch.cat(safe), excess)
    sizes = [value.numel() for value in todo.saliency.values()]
    return {
        name: part.view_as(value).to(value.device, copy=True)
        for (name, value), part in zip(todo.saliency.items(), torch.split(kept, sizes), strict=True)
    }


def _shared(todo: Task, weights: Mapping[str, float]) -> Masks:
    """Keeps the highest of each layer, as many as its share among all layers."""
    names = [name for name, value in todo.saliency.items() if value.numel()]
    shares = apportion(
        [weights[name] for name in names],
        [int(todo.kept[name].sum()) for name in names],
        todo.remaining,
        floor=[todo.floors[name] for name in names],
    )
    share = dict(zip(names, shares.tolist(), strict=True))
    return {
        name: _highest(value.flatten(), todo.kept[name].flatten(), share.get(name, 0)).view_as(
            value
        )
        for name, value in todo.saliency.items()
    }


def _highest(values: Tensor, kept: Tensor, count: int) -> Tensor:
    """Returns which `count` of the kept values are the highest; among equals the last."""
    return kept & ~_lowest(values, kept, int(kept.sum()) - count)


def _lowest(values: Tensor, among: Tensor, count: int) -> Tensor:
    """Returns which `count` of the values `among` are the lowest, bool; among equals the first."""
    if count == 0:
        return torch.zeros_like(among)
    # Not kthvalue, which torch refuses on GPUs in its deterministic mode.
    level = values[among].topk(count, largest=False, sorted=False).values.amax()
    below, equal = among & (values < level), among & (values == level)
    return below | (equal & (equal.cumsum(0) <= count - below.sum()))
