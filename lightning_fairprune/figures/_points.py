"""Names next to points, where there is room."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_fairprune.figures._sheet import DARK, FONT, GREY, LINE, Sheet

Point = tuple[float, float]
Box = tuple[float, float, float, float]

# All in inches.
DOT = 0.055  # radius of a dot
DIRECTIONS = 24
DISTANCES = (0.09, 0.18, 0.3, 0.45, 0.65, 0.9, 1.2, 1.6, 2.1)  # from a dot to its name
CLOSE = 0.2  # up to which a name needs no line

NAME: dict[str, Any] = {"ha": "center", "va": "center", "color": DARK}
NAME |= {"fontsize": FONT, "zorder": 6}


@dataclass(frozen=True, slots=True)
class _Place:
    """The place of a name, in inches from the lower left corner of the axes."""

    at: Point
    box: Box
    start: Point  # of the line from the name to its dot
    line: Tensor


def name_points(
    sheet: Sheet, axis: Any, x: Tensor, y: Tensor, classes: Sequence[int], names: Sequence[str]
) -> str:
    """Writes the names of `classes` next to their points, x and y [K], on axes with fixed limits.

    Returns a note on the names without room, or "".
    """
    from matplotlib.patheffects import withStroke

    width, height = sheet.size_of(axis)
    (left, right), (bottom, top) = axis.get_xlim(), axis.get_ylim()
    across, up = width / (right - left), height / (top - bottom)
    inches = torch.stack([(x - left) * across, (y - bottom) * up], 1)
    dots = inches[~inches.isnan().any(1)]
    texts = {k: sheet.wrap(names[k], sheet.room, most=1) for k in classes}
    sizes = {k: (sheet.measure(text) + 0.04, LINE) for k, text in texts.items()}
    found: dict[int, _Place] = {}
    for order in _orders(classes, inches):
        if len(found) < len(classes):
            found = max(found, _places(order, inches, dots, sizes, (width, height)), key=len)
    for k, place in found.items():
        box, at = place.box, place.at
        middle = ((box[0] + box[2]) / 2 - at[0], (box[1] + box[3]) / 2 - at[1])
        axis.annotate(
            texts[k],
            (float(x[k]), float(y[k])),
            (middle[0] * 72, middle[1] * 72),
            textcoords="offset points",
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
            **NAME,
        )
        if len(place.line):
            horizontal = [left + point[0] / across for point in (at, place.start)]
            vertical = [bottom + point[1] / up for point in (at, place.start)]
            axis.plot(horizontal, vertical, color=GREY, linewidth=0.7, zorder=1.5)
    gone = [names[k] for k in classes if k not in found]
    return f"Without room for a name: {', '.join(gone)}." if gone else ""


def _orders(classes: Sequence[int], inches: Tensor) -> Iterator[list[int]]:
    """Yields orders in which to place the names; some find room for more names."""
    yield list(classes)
    chosen = torch.tensor(classes)
    points = inches[chosen]
    crowd = (torch.cdist(points, points) < 0.6).sum(0)
    for key in (-crowd, -points[:, 0], points[:, 0]):
        yield chosen[key.argsort(stable=True)].tolist()


def _places(
    order: Sequence[int],
    inches: Tensor,
    dots: Tensor,
    sizes: Mapping[int, tuple[float, float]],
    room: tuple[float, float],
) -> dict[int, _Place]:
    """Returns for each name the nearest place that covers no dot, line or earlier name."""
    found: dict[int, _Place] = {}
    for k in order:
        at = (float(inches[k, 0]), float(inches[k, 1]))
        boxes = [place.box for place in found.values()]
        for box, start in _candidates(at, sizes[k]):
            if min(box) < 0 or box[2] > room[0] or box[3] > room[1]:
                continue
            if any(_overlap(box, other) for other in boxes) or _covers(box, dots, DOT):
                continue
            line = _between(at, start)
            if not (len(line) and any(_covers(other, line, 0.0) for other in boxes)):
                found[k] = _Place(at, box, start, line)
                dots = torch.cat([dots, line])
                break
    return found


def _candidates(at: Point, size: tuple[float, float]) -> Iterator[tuple[Box, Point]]:
    """Yields boxes at increasing distances, and the end of a line from the dot to each."""
    for distance in DISTANCES:
        for step in range(DIRECTIONS):
            angle = 2 * math.pi * step / DIRECTIONS
            across, up = math.cos(angle), math.sin(angle)
            x = at[0] + across * (distance + size[0] / 2)
            y = at[1] + up * (distance + size[1] / 2)
            box = (x - size[0] / 2, y - size[1] / 2, x + size[0] / 2, y + size[1] / 2)
            end = (min(max(at[0], box[0]), box[2]), min(max(at[1], box[1]), box[3]))
            yield box, end


def _between(start: Point, end: Point) -> Tensor:
    """Returns points on the line, [n, 2]; none on a short one."""
    length = math.dist(start, end)
    steps = math.ceil(length / DOT) if length > CLOSE else 0
    shares = (torch.arange(steps) + 0.5)[:, None] / max(steps, 1)
    first, last = torch.tensor(start).double(), torch.tensor(end).double()
    return first + shares * (last - first)


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _covers(box: Box, dots: Tensor, reach: float) -> bool:
    x, y = dots.T
    across = (x > box[0] - reach) & (x < box[2] + reach)
    return bool((across & (y > box[1] - reach) & (y < box[3] + reach)).any())
