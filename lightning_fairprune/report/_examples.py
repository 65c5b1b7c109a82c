"""Pictures of samples that were kept and dropped, setting by setting."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from lightning_fairprune.report import _check
from lightning_fairprune.report._compare import Comparison, Group
from lightning_fairprune.report._html import data_uri, paragraph
from lightning_fairprune.report._read import Run
from lightning_fairprune.report._thumbnails import ClassExamples, Example, Examples, examples

MOST_CLASSES = 10
KINDS = (
    "hardest_kept",
    "easiest_kept",
    "hardest_dropped",
    "easiest_dropped",
    "random_kept",
    "random_dropped",
)


def examples_of(comparison: Comparison, dataset: Any) -> str:
    """Returns the examples of the first pruned run of each setting as HTML."""
    parts = []
    for group in comparison.groups:
        run = next((run for run in group.runs if run.record is not None), None)
        if run is not None:
            parts.append(f"<h3>{escape(group.label)}</h3>\n")
            parts.append(_of_run(comparison, group, run, dataset))
    return "".join(parts)


def _of_run(comparison: Comparison, group: Group, run: Run, dataset: Any) -> str:
    assert run.record is not None
    num_classes = len(comparison.class_names)
    by_class = _check.quotas_fit(run.record, comparison.data, num_classes)
    have = len(run.record.selection.sizes)
    classes = [k for k in group.order.tolist() if k < have] if by_class else None
    found = examples(
        run.record, dataset, classes=None if classes is None else classes[:MOST_CLASSES]
    )
    if found.reason:
        return paragraph(found.reason, "soft")
    names: Sequence[str] = [str(k) for k in range(have)]
    if by_class:
        names = comparison.class_names
    return paragraph(_about(found, len(found.classes) < have, run), "soft") + "".join(
        _of_class(names[entry.label], entry) for entry in found.classes
    )


def _about(found: Examples, cut: bool, run: Run) -> str:
    text = f"Of the run {run.path.name}."
    text += f" The {len(found.classes)} classes that come first above." if cut else ""
    return text + (" Colours are stretched, not true." if found.stretched else "")


def _of_class(name: str, entry: ClassExamples) -> str:
    rows = "".join(_row(kind.replace("_", ", "), getattr(entry, kind)) for kind in KINDS)
    return f'<h4>{escape(name)}</h4>\n<div class="examples">\n{rows}</div>\n' if rows else ""


def _row(kind: str, samples: Sequence[Example]) -> str:
    images = "".join(
        f'<img src="{data_uri(sample.png)}" alt="{escape(_alt(kind, sample))}">\n'
        for sample in samples
    )
    return f'<div class="thumbs">\n<span>{escape(kind)}</span>\n{images}</div>\n' if images else ""


def _alt(kind: str, sample: Example) -> str:
    score = "" if sample.score is None else f", score {sample.score:.3g}"
    return f"{kind}: sample {sample.index}{score}"
