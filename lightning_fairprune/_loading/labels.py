"""Labels of a data set without loading its samples."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary, ref

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from lightning_fairprune._model.borrowed import isolated_rng

LABEL_KEYS = ("label", "labels", "target", "targets", "y")
_FEW = 8
_read: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


def labels_of(dataset: Any) -> Tensor | None:
    """Returns the labels that a data set seems to have in memory, int64 [N], or None.

    Reads `targets` or `labels` (torchvision), the last tensor of a TensorDataset, a column of a Hugging Face data set,
    and the parts of Subset and ConcatDataset. None with a `target_transform`, as training then uses other labels.
    This is a guess: compare it with observed labels, or ask `is_label`, before it decides anything.

    Example:
        >>> data = TensorDataset(torch.zeros(3, 2), torch.tensor([2, 0, 1]))
        >>> labels_of(Subset(data, [0, 2]))
        tensor([2, 1])
    """
    found = guesses(dataset)
    return found[0] if found else None


def guesses(dataset: Any) -> list[Tensor]:
    """Returns what may be the labels of a data set, the most likely first, each int64 [N]."""
    if isinstance(dataset, Subset):
        indices: Any = dataset.indices
        indices = indices if isinstance(indices, Tensor) else np.asarray(indices)
        places = torch.as_tensor(indices, dtype=torch.int64, device="cpu")
        return [labels[places] for labels in guesses(dataset.dataset)]
    if isinstance(dataset, ConcatDataset):
        parts = [guesses(part) for part in dataset.datasets]
        return [torch.cat(together) for together in zip(*parts, strict=False)]
    if getattr(dataset, "target_transform", None) is not None:
        return []
    if isinstance(dataset, TensorDataset):
        stored: list[Any] = [*dataset.tensors[::-1]]
    else:
        try:
            stored = [_stored(dataset)]
        except (TypeError, ValueError, OSError, RuntimeError, LookupError):
            return []  # such as a closed file
    found = (_whole(values, dataset) for values in stored)
    return [labels for labels in found if labels is not None]


def is_label(labels: Tensor, dataset: Any) -> bool | None:
    """Whether `labels` [N] are what the samples of a data set say; None if these do not tell.

    Reads a few samples, without changing the state of a random generator.
    """
    places = torch.linspace(0, len(labels) - 1, min(_FEW, len(labels))).long().tolist()
    with isolated_rng():
        try:
            said = [(_own_label(dataset[i]), int(labels[i])) for i in places]
        except Exception:  # the user's, such as a file that only workers open
            return None
    known = [(own, label) for own, label in said if own is not None]
    if not known:
        return None
    return all(own == label for own, label in known)


def _own_label(sample: Any) -> int | None:
    """Returns the label in a sample: its second element, or what has the name of a label."""
    found = label_in(sample)
    if isinstance(found, Tensor | np.ndarray | np.generic):
        whole = found.ndim == 0 or found.shape == (1,)
        found = found.item() if whole else None
    return int(found) if isinstance(found, int) else None


def label_in(values: Any) -> Any:
    """Returns what a sample or a batch has as its second element or under the name of a label; None if neither."""
    if isinstance(values, Sequence) and not isinstance(values, str):
        return values[1] if len(values) > 1 else None
    for name in LABEL_KEYS:
        found = values.get(name) if isinstance(values, Mapping) else getattr(values, name, None)
        if found is not None:
            return found
    return None


def _stored(dataset: Any) -> Any:
    for name in ("targets", "labels"):
        stored = getattr(dataset, name, None)
        if stored is not None:
            # On a disk (h5py, zarr): all at once, as reading them one by one takes minutes.
            in_memory = isinstance(stored, Tensor | np.ndarray) or not hasattr(stored, "shape")
            return stored if in_memory else _once(stored, _everything)
    names = getattr(dataset, "column_names", None)  # of Hugging Face
    is_table = isinstance(names, list) and any(name in names for name in LABEL_KEYS)
    return _once(dataset, _column) if is_table else None


def _everything(stored: Any) -> Any:
    return stored[:]


def _column(dataset: Any) -> Any:
    plain = dataset.with_format("numpy") if hasattr(dataset, "with_format") else dataset
    return plain[next(name for name in LABEL_KEYS if name in dataset.column_names)][:]


def _once(owner: Any, read: Callable[[Any], Any]) -> Any:
    try:
        hash(owner), ref(owner)
    except TypeError:
        return read(owner)
    if owner not in _read:
        _read[owner] = read(owner)
    return _read[owner]


def _whole(stored: Any, dataset: Any) -> Tensor | None:
    if stored is None:
        return None
    try:
        in_torch = isinstance(stored, Tensor | list | tuple)
        labels = torch.as_tensor(stored if in_torch else np.asarray(stored))
    except (TypeError, ValueError, RuntimeError):
        return None  # strings, boxes, ...
    whole = not labels.is_floating_point() and not labels.is_complex()
    is_empty = labels.ndim == 1 and not len(labels)
    if labels.ndim != 1 or not (whole or is_empty) or len(labels) != len(dataset):
        return None
    return labels.long().cpu()


def class_names(dataset: Any, count: int) -> list[str] | None:
    """Returns the names of the classes that a data set has under `classes` (torchvision), or None."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    names = getattr(dataset, "classes", None)
    if not isinstance(names, list | tuple) or len(names) != count:
        return None
    return [str(name) for name in names]


def fingerprint(dataset: Any) -> dict[str, Any]:
    """Returns the length of a data set, and a hash of its labels if they are in memory."""
    labels = labels_of(dataset)
    content = None if labels is None else labels.contiguous().numpy().tobytes()
    digest = None if content is None else hashlib.sha256(content).hexdigest()
    return {"length": len(dataset), "labels": digest}
