"""Labels of a data set without decoding a sample, where it knows them."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset, TensorDataset


def labels_of(dataset: Any) -> Tensor | None:
    """Returns the labels that a data set keeps in memory, int64 [N], or None.

    Looks for `targets` or `labels` as torchvision's data sets have them, for the last tensor of a
    TensorDataset, and through Subset and ConcatDataset. A `target_transform` makes the stored
    labels something else than what training sees, so such a data set has none.

    Example:
        >>> data = TensorDataset(torch.zeros(3, 2), torch.tensor([2, 0, 1]))
        >>> labels_of(Subset(data, [0, 2]))
        tensor([2, 1])
    """
    if isinstance(dataset, Subset):
        labels = labels_of(dataset.dataset)
        return None if labels is None else labels[torch.as_tensor(dataset.indices)]
    if isinstance(dataset, ConcatDataset):
        parts = [labels_of(part) for part in dataset.datasets]
        known = [part for part in parts if part is not None]
        return torch.cat(known) if len(known) == len(parts) else None
    if getattr(dataset, "target_transform", None) is not None:
        return None
    stored = getattr(dataset, "targets", None)
    if stored is None:
        stored = getattr(dataset, "labels", None)
    if isinstance(dataset, TensorDataset):
        stored = dataset.tensors[-1]
    try:
        labels = torch.as_tensor(stored)
    except (TypeError, ValueError, RuntimeError):
        return None  # strings, boxes, ...
    whole = not labels.is_floating_point() and not labels.is_complex()
    if labels.ndim != 1 or not whole or len(labels) != len(dataset):
        return None
    return labels.long().cpu()


def fingerprint(dataset: Any) -> dict[str, Any]:
    """Returns what tells a data set from another: its length, and a hash of its labels if free."""
    labels = labels_of(dataset)
    digest = None
    if labels is not None:
        digest = hashlib.sha256(labels.contiguous().numpy().tobytes()).hexdigest()
    return {"length": len(dataset), "labels": digest}
