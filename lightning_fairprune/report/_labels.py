"""Classes whose labels look wrong in the warm-up of a run, and the samples that look most so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from lightning_fairprune.records.label_errors import LabelErrors
from lightning_fairprune.report._compare import Comparison
from lightning_fairprune.report._read import Run
from lightning_fairprune.report._thumbnails import Example, pictures

MOST_CLASSES = 10
_MOST_SAMPLES = 12


class Suspects(NamedTuple):
    """A class, the estimate in words, and samples of it by the class that they look like."""

    name: str
    about: str
    samples: Sequence[tuple[str, Sequence[Example]]] = ()


class LabelsOfRun(NamedTuple):
    """The classes of the first run with an estimate of a setting: a note, and what each doubtful class has."""

    setting: str
    about: str
    classes: Sequence[Suspects]


def labels_of(comparison: Comparison, dataset: Any = None) -> list[LabelsOfRun]:
    """Returns the doubtful classes of each setting with an estimate, with pictures if there is a data set."""
    found = []
    for setting in comparison.settings:
        for run in setting.runs:
            errors = None if run.record is None else run.record.label_errors
            if errors is not None:
                found.append(_of_run(comparison, setting.label, run, errors, dataset))
                break
    return found


def _of_run(
    comparison: Comparison, setting: str, run: Run, errors: LabelErrors, dataset: Any
) -> LabelsOfRun:
    have = len(errors.sizes)
    fit = len(comparison.class_names) == have
    names = comparison.class_names if fit else tuple(f"class {k}" for k in range(have))
    doubtful = errors.doubtful.tolist()
    about = f"Estimated in the warm-up of the run {run.path.name}."
    if not doubtful:
        about += " No class has labels that look worse than those of the others."
    elif len(doubtful) > MOST_CLASSES:
        about += f" The first {MOST_CLASSES} of {len(doubtful)} classes."
    classes = []
    for k in doubtful[:MOST_CLASSES]:
        samples = _samples(errors, k, names, dataset)
        classes.append(Suspects(names[k], errors.about(k, names), samples))
    return LabelsOfRun(setting, about, classes)


def _samples(
    errors: LabelErrors, label: int, names: Sequence[str], dataset: Any
) -> list[tuple[str, Sequence[Example]]]:
    mine = (errors.given == label).nonzero().squeeze(1)[:_MOST_SAMPLES]
    shown = [] if dataset is None else pictures(dataset, errors.suspects[mine].tolist())
    by_class: dict[str, list[Example]] = {}
    for example, likely in zip(shown, errors.likely[mine].tolist(), strict=False):
        by_class.setdefault(names[likely], []).append(example)
    return [(f"looks like {name}", examples) for name, examples in by_class.items()]
