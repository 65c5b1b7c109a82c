"""The class of each sample that a loss or metric is given."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_fairprune._model.flow import Event, Flow
from lightning_fairprune._model.losses import has_one_label, ignoring, labels_in, plain


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """The labels of a loss or metric.

    Args:
        labels: class indices [B, ...], or with `per_label` whether each label holds, [B, C].
        leaf: number of the tensor of the batch that they are equal to; None if they are made from others.
        per_label: see `Seen`.
        ignore_index: of the loss or metric.
        mixed: see `Seen`.
    """

    labels: Tensor
    leaf: int | None
    per_label: bool = False
    ignore_index: int | None = None
    mixed: Tensor | None = None


def target_of(flow: Flow, event: Event) -> Target | None:
    """Returns the class indices that a loss or metric was given."""
    loss, target = event.loss, event.target
    assert target is not None
    if target.ndim == 0:  # such as the weight of a mean
        return None
    whole = not target.is_floating_point()
    if loss is None or loss.whole:
        if not whole:
            return None
        labels = ignoring(plain(target), event.ignore_index)
        return Target(labels, _leaf_like(flow, event, labels), ignore_index=event.ignore_index)
    size = len(target)
    for leaf in sorted(event.target_trace.leaves - event.target_trace.changed):
        value = flow.leaves[leaf][1]
        if is_whole(value) and value.shape == (size,):
            labels = plain(value).long()
            if _belongs(plain(target), labels):
                return Target(labels, leaf)
    values = plain(target)
    many = loss.kind != "classes" and values.ndim == 2 and values.shape[1] > 1
    per_label = many and not bool(has_one_label(values).all())
    found = labels_in(loss, per_label)
    if found is None:
        return None
    mixed = values if values.ndim == 2 and not per_label and _is_mixed(values) else None
    return Target(found, None, per_label, mixed=mixed)


def _is_mixed(values: Tensor) -> bool:
    """Whether a row holds more than one class to unequal parts, as smoothed labels do not."""
    if values.shape[1] < 3:
        return bool(((values > 1e-6) & (values < 1 - 1e-6)).any())
    highest, second, *_ = values.topk(3, 1).values.unbind(1)
    return bool((second - values.amin(1) > 1e-6).any() and (highest - second > 1e-6).any())


def _belongs(target: Tensor, labels: Tensor) -> bool:
    """Whether a target [B, C] or [B] is made from the labels [B]: one-hot, smoothed, or mixed with others'."""
    if target.numel() == len(labels):
        return bool(torch.equal((target.reshape(-1) > 0.5).long(), labels))
    inside = labels.clamp(0, target.shape[1] - 1)
    mine = target.gather(1, inside.unsqueeze(1)).squeeze(1)
    good = (mine > 0) & (labels == inside)
    return bool(good.float().mean() > 0.5)


def _leaf_like(flow: Flow, event: Event, labels: Tensor) -> int | None:
    """Returns the tensor of the batch that has these class indices, if there is one."""
    for leaf in sorted(event.target_trace.leaves - event.target_trace.changed):
        value = plain(flow.leaves[leaf][1])
        if not is_whole(value):
            continue
        if (
            value.shape == labels.shape
            and value.ndim
            and torch.equal(ignoring(value, event.ignore_index).long(), labels.long())
        ):
            return leaf
    return None


def is_whole(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() and tensor.dtype != torch.bool
