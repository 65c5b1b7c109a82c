"""Classes as rows of a chart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_fairprune.figures._sheet import (
    BLUE,
    DARK,
    FONT,
    GREY,
    GRID,
    LINE,
    PAD,
    VERMILION,
    Sheet,
)
from lightning_fairprune.records.recall_history import printable, shortened

LONGEST = 60  # characters of a name
MOST_ROWS = 40  # with more classes, only END at either end are rows
END = 15


def named(names: Sequence[object] | None, num_classes: int) -> list[str]:
    """Returns a name for each class, by default its number."""
    if names is None:
        return [str(k) for k in range(num_classes)]
    if len(names) != num_classes:
        raise ValueError(f"`names` must name each of the {num_classes} classes, got {len(names)}.")
    return [drawable(name) for name in names]


def drawable(name: object) -> str:
    """Returns a name in one line of bounded length; the tables of a report have the whole one."""
    start = str(name)[:100_000]  # of a text of any length
    return printable(shortened(" ".join(start.split()), LONGEST))


def fractions(name: str, value: Tensor, most: int = 1) -> Tensor:
    """Returns float64 on the CPU, in [0, most] or NaN."""
    found = value.detach().cpu().double()
    wrong = (found < 0) | (found > most)
    if bool(wrong.any()):
        raise ValueError(
            f"`{name}` must be in [0, {most}], or NaN for a class without samples, "
            f"got {float(found[wrong][0]):g}."
        )
    return found


def per_model(name: str, value: Tensor) -> Tensor:
    """Returns fractions as [M, K]."""
    found = fractions(name, value)
    found = found[None] if found.ndim == 1 else found
    if found.ndim != 2 or not found.numel():
        raise ValueError(
            f"`{name}` must be [K], or [M, K] for M seeds, with at least one class, "
            f"got {list(value.shape)}."
        )
    return found


def left_out(count: int, why: str = "without samples") -> str:
    """Returns the note on classes that are not drawn; "" for none."""
    if not count:
        return ""
    return f"{count:,} {'class' if count == 1 else 'classes'} {why} left out."


class Rows:
    """Rows for classes in this order, int64 [n], first on top; of too many, only both ends."""

    def __init__(self, order: Tensor) -> None:
        self.order = order
        self.hidden = len(order) - 2 * END if len(order) > MOST_ROWS else 0
        self.shown = torch.cat([order[:END], order[-END:]]) if self.hidden else order

    def draw(
        self, sheet: Sheet, names: Sequence[str], column: Sequence[str], heading: str
    ) -> tuple[Any, Any]:
        """Adds axes with a row per class shown, its name to the left and a column with a heading to the right.

        Returns the axes and the vertical position of each row as an array.
        """
        labels = [sheet.wrap(names[k], sheet.room, most=2) for k in self.shown.tolist()]
        left = max(sheet.measure(line) for label in labels for line in label.split("\n"))
        right = max(sheet.measure(line) for text in (*column, heading) for line in text.split("\n"))
        lines = [1 + max(a.count("\n"), b.count("\n")) for a, b in zip(labels, column, strict=True)]
        heights = torch.tensor(lines) * LINE + 0.06
        ends = heights.cumsum(0)
        if self.hidden:
            ends[END:] += 0.3  # for the sentence on the others
        places = ends - heights / 2
        total = float(ends[-1])
        sheet.gap(LINE)  # for the heading
        (axis,) = sheet.axes(total, left=PAD + left + 0.1, right=PAD + right + 0.1)
        axis.set_ylim(total, 0)
        axis.set_yticks(places.tolist(), labels)
        axis.tick_params(axis="y", length=0)
        axis.grid(axis="x", **GRID)
        beside = {"transform": axis.get_yaxis_transform(), "color": DARK, "fontsize": FONT}
        shift = 0.1 / sheet.size_of(axis)[0]
        for place, text in zip(places.tolist(), column, strict=True):
            axis.text(1 + shift, place, text, va="center", linespacing=1.1, **beside)
        axis.text(1 + shift, 0, heading, va="bottom", **beside)
        if self.hidden:
            middle = float(ends[END - 1]) + 0.15
            box = {"facecolor": "white", "edgecolor": "none", "pad": 2}
            text = f"{self.hidden:,} more: see below"
            style = {**beside, "color": GREY, "va": "center", "ha": "center", "bbox": box}
            axis.text(0.5, middle, text, zorder=3, **style)
        return axis, places.numpy()


def limits(values: Tensor) -> tuple[float, float]:
    """Returns the limits of an axis of fractions: all values with a margin, hardly beyond 0 and 1."""
    low, high = float(values.min()), float(values.max())
    room = max(0.06 * (high - low), 0.01)
    # Only classes that are drawn several times lie beyond 1.
    top = high + room if high > 1 else min(high + room, 1.02)
    return max(low - room, min(-0.02, low)), top


def curve(sheet: Sheet, values: Tensor, label: str, *, compared: bool = False) -> None:
    """Adds the sorted values of all classes as a line, filled below and above 0 if `compared`."""
    sheet.gap(0.1)
    (axis,) = sheet.axes(1.5, above=[label])
    places, drawn = range(1, len(values) + 1), values.numpy()
    axis.plot(places, drawn, color=DARK, linewidth=1.5)
    if compared:
        for side, colour in ((drawn < 0, VERMILION), (drawn >= 0, BLUE)):
            axis.fill_between(places, drawn, 0, where=side, color=colour, alpha=0.35, lw=0)
        axis.axhline(0, color=GREY, linewidth=0.8)
    axis.set_xlim(1, len(values))
    axis.grid(axis="y", **GRID)
    sheet.below([axis], f"all {len(values):,} classes, from the lowest to the highest")
