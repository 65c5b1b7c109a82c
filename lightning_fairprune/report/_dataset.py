"""The data set that the examples come from, by name."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from torch.utils.data import IterableDataset

from lightning_fairprune.report._compare import Comparison


def load(name: str) -> Any:
    """Returns what ``package.module:name`` is, or returns when called.

    Raises:
        ValueError: If it cannot be imported or is no data set that can be picked from by index.
    """
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise ValueError(f"`dataset` must be written as package.module:name, got {name!r}.")
    # A console script, unlike `python -m`, cannot import from where it is called.
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
        if callable(found) and (isinstance(found, type) or not hasattr(found, "__getitem__")):
            found = found()
    except Exception as error:  # user code may raise anything
        raise ValueError(
            f"`dataset` {name!r} cannot be loaded: {type(error).__name__}: {error}."
        ) from error
    return found


def check(dataset: Any, comparison: Comparison) -> None:
    """Raises a ValueError unless it is the data set that samples were kept from."""
    map_style = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
    if not map_style or isinstance(dataset, IterableDataset):
        raise ValueError(
            "`dataset` must be a map-style dataset, with __getitem__ and __len__, got "
            f"{type(dataset).__name__}."
        )
    records = [run.record for run in comparison.runs if run.record is not None]
    if not records:
        raise ValueError("`dataset` is of no use here: no run has pruned its data.")
    for record in records:
        if len(dataset) != record.selection.num_samples:
            raise ValueError(
                f"`dataset` must be the {record.selection.num_samples} samples that were selected "
                f"from, got {len(dataset)}."
            )
