"""Labels of a data set without loading its samples."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset, TensorDataset


def labels_of(dataset: Any) -> Tensor | None:
    """Returns the labels that a data set has in memory, int64 [N], or None.

    Reads `targets` or `labels` (torchvision), the last tensor of a TensorDataset, and the parts of Subset
    and ConcatDataset. None with a `target_transform`, as training then uses other labels.

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
    """Returns the length of a data set, and a hash of its labels if they are in memory."""
    labels = labels_of(dataset)
    content = None if labels is None else labels.contiguous().numpy().tobytes()
    digest = None if content is None else hashlib.sha256(content).hexdigest()
    return {"length": len(dataset), "labels": digest}
