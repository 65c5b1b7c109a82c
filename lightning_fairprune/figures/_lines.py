"""Lines, one for each label: styles, panels, and bands over seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_fairprune.figures._sheet import COLOURS, Sheet

STYLES = ("-", (0, (5, 2)), (0, (1.5, 1.5)))
DASHED: dict[str, Any] = {"linestyle": (0, (4, 3)), "linewidth": 1.0, "zorder": 1}
MOST_MARKERS = 12


def style(i: int, width: float = 1.8) -> dict[str, Any]:
    """Returns the style of the i-th line."""
    dashes = STYLES[i // len(COLOURS) % len(STYLES)]
    return {"color": COLOURS[i % len(COLOURS)], "linestyle": dashes, "linewidth": width}


def marker(count: int) -> dict[str, Any]:
    """Returns the markers of a line of so many points, none if they would hide it."""
    return {"marker": "o", "markersize": 4} if count <= MOST_MARKERS else {}


def handles(labels: Iterable[str], width: float = 1.8, **look: Any) -> list[Any]:
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], label=label, **look, **style(i, width)) for i, label in enumerate(labels)
    ]


def panels(sheet: Sheet, titles: Sequence[str], label: str) -> list[Any]:
    """Adds axes with bold titles: side by side, or below each other on a phone."""
    found: list[Any] = []
    for row in [[title] for title in titles] if sheet.narrow else [titles]:
        added = sheet.axes(1.7 if sheet.narrow else 2.4, above=row, bold=True)
        sheet.below(added, label)
        found += added
    return found


def extremes(values: Tensor) -> tuple[Tensor, Tensor]:
    """Returns lowest and highest of [M, n] over the seeds; inf and -inf if all are NaN."""
    return values.nan_to_num(torch.inf).amin(0), values.nan_to_num(-torch.inf).amax(0)


def draw(axis: Any, x: Sequence[float], values: Tensor, look: Mapping[str, Any]) -> None:
    """Draws the mean of [M, n] over the seeds, and a band from the lowest to the highest."""
    axis.plot(x, values.nanmean(0).tolist(), **look, **marker(len(x)))
    if len(values) > 1:
        ends = [end.where(end.isfinite(), torch.nan).tolist() for end in extremes(values)]
        axis.fill_between(x, *ends, color=look["color"], alpha=0.2, linewidth=0)


def explain(sheet: Sheet, seeds: int) -> None:
    """Adds the explanation of lines and bands, with more than one seed."""
    if seeds > 1:
        sheet.text(f"Lines: mean over up to {seeds} seeds; bands: lowest to highest.")
