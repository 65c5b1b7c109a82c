"""The figures of a report: which there are, and their bytes."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from lightning_fairprune import figures
from lightning_fairprune.report._compare import Comparison, Group
from lightning_fairprune.report._words import points

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Dots per inch: the page shows the wide form at most 900 pixels wide, screens have up to twice as many.
FILE, WIDE, NARROW = 200, 144, 190
COLOURS = 48  # enough for a few hues and their shades, and a third of the bytes


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """A figure that is still to be drawn.

    Args:
        section: of the page.
        group: position of the setting that it is about; None for all.
        name: of the file, without suffix.
        alt: what it shows, in words.
        caption: what to know below it.
        draw: makes it, wide or narrow.
    """

    section: str
    group: int | None
    name: str
    alt: str
    caption: str
    draw: Callable[[bool], Figure]


class Picture(NamedTuple):
    """A figure as PNG: for papers, for the page, and for the page on a phone."""

    plan: Plan
    file: bytes
    wide: bytes
    narrow: bytes
    size: tuple[int, int]


def plans(comparison: Comparison) -> list[Plan]:
    """Returns the figures that the numbers allow, in the order of the page."""
    found: list[Plan] = []
    for i, group in enumerate(comparison.groups):
        found += _of_group(comparison, group, i)
    if comparison.curves is not None:
        found.append(_curves(comparison))
    return found


def render(plan: Plan) -> Picture:
    """Draws a figure in all its forms."""
    wide, narrow = plan.draw(False), plan.draw(True)
    width, height = wide.get_size_inches()
    size = (round(100 * width), round(100 * height))
    return Picture(plan, _png(wide, FILE), _small(wide, WIDE), _small(narrow, NARROW), size)


def _of_group(comparison: Comparison, group: Group, i: int) -> Iterator[Plan]:
    names, label = comparison.class_names, group.label
    slug = re.sub(r"[^a-z0-9]+", "_", label.lower()).strip("_")[:40].strip("_")

    def plan(section: str, alt: str, caption: str, draw: Callable[..., Figure]) -> Plan:
        name = f"{section}_{i + 1}_{slug}" if slug else f"{section}_{i + 1}"
        return Plan(section, i, name, alt, caption, lambda narrow: draw(narrow=narrow))

    ends = [k for k in group.order.tolist() if not torch.isnan(group.mean[k])]
    told = ", ".join(f"{names[k]} {points(float(group.mean[k]))} %" for k in ends[:3])
    against = "" if group.before is None else " next to the reference"
    yield plan(
        "recall_by_class",
        f"Recall of each class with {label}{against}; first {told}.",
        "",
        partial(
            figures.recall_by_class,
            group.before,
            group.recall,
            names,
            labels=("reference", "after" if group.before is not None else "recall"),
        ),
    )
    density = group.density
    if bool((~density.isnan()).any()):
        recall, whose = _recall_of_quotas(group)
        yield plan(
            "density_against_recall",
            f"Share of each class that is kept with {label}, against its recall.",
            f"Recall: {whose}.",
            partial(figures.density_against_recall, density, recall, names),
        )
        m = int((~group.sizes.isnan()).all(1).long().argmax())  # the first that was pruned
        sizes, kept = group.sizes[m].long(), group.kept[m].long()
        seed = group.runs[m].seed
        of = "" if len(group.runs) == 1 else f"Of the run {group.runs[m].path.name}"
        of += f", seed {seed}." if of and seed is not None else ("." if of else "")
        yield plan(
            "kept_by_class",
            f"Training samples of each class kept and dropped with {label}.",
            of,
            partial(figures.kept_by_class, kept, sizes, names),
        )
        yield from _quotas(plan, group, m, sizes, names, of)
    if group.before is not None and bool((~group.values["alpha"].isnan()).any()):
        yield plan(
            "intensification",
            f"Balance of each class with {label} against that of the reference, and its line.",
            "",
            partial(figures.intensification_scatter, group.before, group.recall, names),
        )


def _quotas(
    plan: Callable[..., Plan],
    group: Group,
    m: int,
    sizes: Tensor,
    names: tuple[str, ...],
    of: str,
) -> Iterator[Plan]:
    record = group.runs[m].record
    assert record is not None
    history = [e for e in record.history if e.quota is not None and len(e.quota) == len(sizes)]
    if len(history) > 1:
        yield plan(
            "quotas_over_time",
            f"Share of each class that is kept over the estimates of the quotas with {group.label}.",
            of,
            partial(figures.quotas_over_time, history, sizes, names),
        )


def _recall_of_quotas(group: Group) -> tuple[Tensor, str]:
    """Returns the recalls that the last quotas were made from, else those of the last evaluation."""
    used = []
    for run in group.runs:
        last = run.record.history[-1] if run.record is not None and run.record.history else None
        if last is not None and last.recall is not None and len(last.recall) == len(group.mean):
            used.append(last.recall.double())
    if len(used) == len(group.runs):
        return torch.stack(used).nanmean(0).clamp(0, 1), "what the last quotas were made from"
    return group.mean, "of the last evaluation"


def _curves(comparison: Comparison) -> Plan:
    data = comparison.curves
    assert data is not None
    groups = {group.label: group.runs for group in comparison.groups}
    if comparison.reference is not None:
        groups = {"reference": comparison.reference.runs, **groups}
    runs: dict[str, Any] = {
        label: seeds
        for label, members in groups.items()
        if (seeds := [run.history.of(data) for run in members if run.history.of(data)])
    }
    return Plan(
        "recalls_over_epochs",
        None,
        "recalls_over_epochs",
        f"Lowest and average recall and gap on {data} over the epochs, a line for each setting.",
        f"Evaluations of {data}.",
        lambda narrow: figures.recalls_over_epochs(runs, narrow=narrow),
    )


def _png(figure: Figure, dpi: int) -> bytes:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=dpi, facecolor="white")
    return data.getvalue()


def _small(figure: Figure, dpi: int) -> bytes:
    """Returns a PNG with few colours."""
    from PIL import Image

    data = io.BytesIO()
    with Image.open(io.BytesIO(_png(figure, dpi))) as image:
        image.convert("RGB").quantize(COLOURS).save(data, format="png", optimize=True)
    return data.getvalue()
