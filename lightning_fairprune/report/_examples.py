"""Pictures of samples kept and dropped by each setting, and their data set."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, NamedTuple

from torch.utils.data import IterableDataset

from lightning_fairprune.report import _check
from lightning_fairprune.report._compare import Comparison, Setting
from lightning_fairprune.report._groups import discovered
from lightning_fairprune.report._read import Run
from lightning_fairprune.report._thumbnails import ClassExamples, Example, examples

MOST_CLASSES = 10
KINDS = [field.name for field in fields(ClassExamples) if field.name != "label"]
Rows = list[tuple[str, Sequence[Example]]]


class SettingExamples(NamedTuple):
    """Examples from the first pruned run of a setting: a note, and by class the samples of each kind."""

    label: str
    about: str
    classes: Sequence[tuple[str, Rows]] = ()


def load_dataset(name: str) -> Any:
    """Returns the object ``package.module:name``, or its result if it is a function or class."""
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise ValueError(f"`dataset` must be written as package.module:name, got {name!r}.")
    # A console script, unlike `python -m`, cannot import from the working directory.
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


def check_dataset(dataset: Any, comparison: Comparison) -> None:
    """Raises a ValueError unless the data set is the one that was pruned."""
    map_style = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
    if not map_style or isinstance(dataset, IterableDataset):
        raise ValueError(
            "`dataset` must be a map-style dataset, with __getitem__ and __len__, got "
            f"{type(dataset).__name__}."
        )
    records = [run.record for run in comparison.runs if run.record is not None]
    if not records:
        raise ValueError("`dataset` has no effect: no run has pruned its data.")
    for record in records:
        if len(dataset) != record.selection.num_samples:
            raise ValueError(
                f"`dataset` must be the {record.selection.num_samples} samples that were selected "
                f"from, got {len(dataset)}."
            )


def examples_of(comparison: Comparison, dataset: Any) -> list[SettingExamples]:
    """Returns the examples of each setting that pruned data."""
    first = [
        (s, next((r for r in s.runs if r.record is not None), None)) for s in comparison.settings
    ]
    return [_of_run(comparison, s, run, dataset) for s, run in first if run is not None]


def _of_run(comparison: Comparison, setting: Setting, run: Run, dataset: Any) -> SettingExamples:
    assert run.record is not None
    names, have = comparison.class_names, len(run.record.selection.sizes)
    classes = None
    hidden = discovered(run.record, run.history.class_names)
    if hidden:
        # Those of the classes that are split: the others are whole classes.
        classes = list(hidden)[:MOST_CLASSES]
        names = tuple(hidden.get(k, str(k)) for k in range(have))
    elif _check.quotas_fit(run.record, comparison.data, len(names)):
        classes = [k for k in setting.order.tolist() if k < have][:MOST_CLASSES]
    else:
        names = tuple(str(k) for k in range(have))
    found = examples(run.record, dataset, classes=classes)
    if found.reason:
        return SettingExamples(setting.label, found.reason)
    about = f"Of the run {run.path.name}."
    if hidden:
        about += " The groups that were discovered, the best learnt of a class first."
    elif len(found.classes) < have:
        about += f" The {len(found.classes)} classes that come first above."
    if found.stretched:
        about += " Colours are stretched, not true."
    by_class: list[tuple[str, Rows]] = []
    for entry in found.classes:
        rows = [(kind.replace("_", ", "), getattr(entry, kind)) for kind in KINDS]
        if any(samples for _, samples in rows):
            by_class.append((names[entry.label], [(k, s) for k, s in rows if s]))
    return SettingExamples(setting.label, about, by_class)
