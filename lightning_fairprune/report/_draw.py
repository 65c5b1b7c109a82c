"""The figures of a report."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from lightning_fairprune import figures
from lightning_fairprune.report._compare import Comparison, Setting
from lightning_fairprune.report._words import points
from lightning_fairprune.selection import stalls

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Dots per inch: the wide form is at most 900 pixels wide on the page, on screens with up to twice as many.
FILE, WIDE, NARROW = 200, 144, 190
COLOURS = 48  # enough for a few hues and their shades, and a third of the bytes


@dataclass(frozen=True, slots=True, eq=False)
class Drawing:
    """A figure to draw by ``draw(narrow=...)``, its section of the page, and the position of its setting, None for all.

    `name` is that of the file, without suffix; `alt` is the alternative text.
    """

    section: str
    setting: int | None
    name: str
    alt: str
    caption: str
    draw: Callable[..., Figure]


class Picture(NamedTuple):
    """A figure as PNG, for papers, the page, and the page on a phone, and its size on the page."""

    drawing: Drawing
    file: bytes
    wide: bytes
    narrow: bytes
    size: tuple[int, int]


def drawings(comparison: Comparison) -> list[Drawing]:
    """Returns the figures of the settings, in the order of the page."""
    found: list[Drawing] = []
    for i, setting in enumerate(comparison.settings):
        slug = re.sub(r"[^a-z0-9]+", "_", setting.label.lower()).strip("_")[:40].strip("_")
        end = f"{i + 1}_{slug}" if slug else f"{i + 1}"
        found += [
            Drawing(section, i, f"{section}_{end}", alt, caption, draw)
            for section, alt, caption, draw in _of_setting(comparison, setting)
        ]
    if comparison.curves is not None:
        found.append(_curves(comparison, comparison.curves))
    return found


def render(drawing: Drawing) -> Picture:
    """Draws a figure in all forms."""
    wide, narrow = drawing.draw(narrow=False), drawing.draw(narrow=True)
    width, height = wide.get_size_inches()
    size = (round(100 * width), round(100 * height))
    return Picture(drawing, _png(wide, FILE), _small(wide, WIDE), _small(narrow, NARROW), size)


# Section, alternative text, caption, and the function that draws it.
_Part = tuple[str, str, str, Callable[..., "Figure"]]


def _of_setting(comparison: Comparison, setting: Setting) -> Iterator[_Part]:
    names, label, before = comparison.class_names, setting.label, setting.before
    ends = [k for k in setting.order.tolist() if not torch.isnan(setting.mean[k])]
    first = ", ".join(f"{names[k]} {points(float(setting.mean[k]))} %" for k in ends[:3])
    against = "" if before is None else " next to the reference"
    labels = ("reference", "recall" if before is None else "after")
    yield (
        "recall_by_class",
        f"Recall of each class with {label}{against}; first {first}.",
        "",
        partial(figures.recall_by_class, before, setting.recall, names, labels=labels),
    )
    if bool((~setting.density.isnan()).any()):
        recall, whose = _recall_of_quotas(setting)
        yield (
            "density_against_recall",
            f"Share of each class that is kept with {label}, against its recall.",
            f"Recall: {whose}.",
            partial(
                figures.density_against_recall,
                setting.density,
                recall,
                names,
                repeat=setting.repeat,
            ),
        )
        yield from _of_quotas(setting, names)
    if before is not None and bool((~setting.values["alpha"].isnan()).any()):
        yield (
            "intensification",
            f"Balance of each class with {label} against that of the reference, and its line.",
            "",
            partial(figures.intensification_scatter, before, setting.recall, names),
        )


def _of_quotas(setting: Setting, names: tuple[str, ...]) -> Iterator[_Part]:
    m = int((~setting.sizes.isnan()).all(1).long().argmax())  # the first pruned one
    sizes, kept, run = setting.sizes[m].long(), setting.kept[m].long(), setting.runs[m]
    assert run.record is not None
    seed = "" if run.seed is None else f", seed {run.seed}"
    of = "" if len(setting.runs) == 1 else f"Of the run {run.path.name}{seed}."
    if setting.repeat > 1:
        of = f"Samples are drawn up to {setting.repeat} times an epoch. {of}".strip()
    yield (
        "kept_by_class",
        f"Training samples of each class kept and dropped with {setting.label}.",
        of,
        partial(figures.kept_by_class, kept, sizes, names, repeat=setting.repeat),
    )
    history = [e for e in run.record.history if e.quota is not None and len(e.quota) == len(sizes)]
    if len(history) > 1:
        frozen, said = run.record.frozen, ""
        if frozen:
            kind = "groups" if run.record.by_group else "classes"
            said = stalls.in_words(frozen, names, kind)
        yield (
            "quotas_over_time",
            f"Share of each class that is kept over the estimates of the quotas with {setting.label}.",
            " ".join(part for part in (of, said[:1].upper() + said[1:]) if part),
            partial(figures.quotas_over_time, history, sizes, names, repeat=setting.repeat),
        )


def _recall_of_quotas(setting: Setting) -> tuple[Tensor, str]:
    """Returns the recalls of the last quotas, or those of the last evaluation, and their description."""
    used = []
    for run in setting.runs:
        last = run.record.history[-1] if run.record is not None and run.record.history else None
        if last is not None and last.recall is not None and len(last.recall) == len(setting.mean):
            used.append(last.recall.double())
    if len(used) == len(setting.runs):
        return torch.stack(used).nanmean(0).clamp(0, 1), "what the last quotas were made from"
    return setting.mean, "of the last evaluation"


def _curves(comparison: Comparison, data: str) -> Drawing:
    members = {setting.label: setting.runs for setting in comparison.settings}
    if comparison.reference is not None:
        members = {"reference": comparison.reference.runs, **members}
    runs = {
        label: seeds
        for label, several in members.items()
        if (seeds := [run.history.of(data) for run in several if run.history.of(data)])
    }
    name = "recalls_over_epochs"
    alt = f"Lowest and average recall and gap on {data} over the epochs, a line for each setting."
    draw = partial(figures.recalls_over_epochs, runs)
    return Drawing(name, None, name, alt, f"Evaluations of {data}.", draw)


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
