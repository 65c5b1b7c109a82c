"""How the layers of a network share its sparsity."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lightning_fairprune.figures._classes import MOST_ROWS
from lightning_fairprune.figures._compression import AXIS, in_percent, mark, place
from lightning_fairprune.figures._sheet import (
    BLUE,
    DARK,
    FONT,
    GRID,
    LINE,
    PAD,
    VERMILION,
    Sheet,
    settings,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DASHED: dict[str, Any] = {"linestyle": (0, (4, 3)), "linewidth": 1.0, "zorder": 3}
MOST_EMPTY = 8  # layers that a note names
WEIGHT = ".weight"  # says nothing where all names end with it


def layer_sparsity(
    layers: Mapping[str, float], *, total: float | None = None, narrow: bool = False
) -> Figure:
    """Draws how sparse each layer is, in their order, the first on top; of more than 40, only some are named.

    The axis is that of `sparsity_curve`, so that 99 and 99.9 % can be told apart.

    Args:
        layers: fraction of the weights of each layer that is removed, in [0, 1]; NaN is not drawn.
        total: the same of all weights together, for a dashed line; None draws none.
        narrow: for a phone.

    Returns:
        The figure.

    Raises:
        ValueError: If there is no layer, or a value is out of range.
        ImportError: If matplotlib is missing.

    Example:
        >>> figure = layer_sparsity({"conv.weight": 0.5, "fc.weight": 0.995})
        >>> figure.texts[0].get_text()
        'Sparsest: fc.weight, 99.5 %; densest: conv.weight, 50 %'
    """
    for name, value in {"total": 0.0 if total is None else total, **layers}.items():
        if not (math.isnan(value) or 0 <= value <= 1):
            raise ValueError(f"`layers` must be in [0, 1] or NaN, got {value:g} of {name!r}.")
    drawn = {name: value for name, value in layers.items() if not math.isnan(value)}
    if not drawn:
        raise ValueError(f"`layers` must have at least one value, got {dict(layers)}.")
    with settings():
        sheet = Sheet(narrow)
        sheet.title(_in_words(drawn))
        every = math.ceil(len(drawn) / MOST_ROWS)
        room = 1.5 if narrow else 2.9
        labels = [_end_of(sheet, name, room) for name in _short(drawn)[::every]]
        said = [f"{in_percent(value)} %" for value in drawn.values()] if every == 1 else []
        left = max(sheet.measure(label) for label in labels)
        right = max([0.25, *(sheet.measure(text) + 0.2 for text in said)])
        height = (LINE + 0.06) / every * len(drawn)
        if total is not None:
            from matplotlib.lines import Line2D

            text = f"all weights together: {in_percent(total)} %"
            sheet.legend([Line2D([], [], label=text, color=DARK, **DASHED)])
        (axis,) = sheet.axes(max(height, 2 * LINE), left=PAD + left + 0.1, right=right)
        rows = range(len(drawn))
        known = [v for v in (*drawn.values(), total or 0.0) if v < 1]
        far = 1.05 * place(max([0.1, *known]))
        # A layer without any weight has no compression ratio: its bar is as long as the axis.
        widths = [place(value) if value < 1 else far for value in drawn.values()]
        colours = [VERMILION if value == 1 else BLUE for value in drawn.values()]
        axis.barh(rows, widths, height=0.72, color=colours)
        beside = {"transform": axis.get_yaxis_transform(), "va": "center", "color": DARK}
        for row, text in zip(rows, said, strict=False):
            axis.text(1 + 0.1 / sheet.size_of(axis)[0], row, text, fontsize=FONT, **beside)
        if total is not None:
            axis.axvline(place(total) if total < 1 else far, color=DARK, **DASHED)
        axis.set_xlim(0, far)
        axis.set_ylim(len(drawn) - 0.5, -0.5)
        axis.set_yticks(range(0, len(drawn), every), labels)
        mark(sheet, axis, [0.0, far])
        axis.grid(axis="x", **GRID)
        axis.tick_params(axis="y", length=0)
        sheet.below([axis], AXIS)
        sheet.text(_empty([name for name, value in drawn.items() if value == 1]))
        return sheet.finish()


def _in_words(layers: Mapping[str, float]) -> str:
    most, least = max(layers, key=layers.__getitem__), min(layers, key=layers.__getitem__)
    text = f"{most}, {in_percent(layers[most])} %"
    if layers[most] == layers[least]:
        return f"Every layer: {in_percent(layers[most])} %" if len(layers) > 1 else text
    return f"Sparsest: {text}; densest: {least}, {in_percent(layers[least])} %"


def _empty(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_EMPTY} more" if len(names) > MOST_EMPTY else ""
    return f"Without any weight left: {', '.join(names[:MOST_EMPTY])}{more}." if names else ""


def _short(names: Iterable[str]) -> list[str]:
    """Returns names without the word that all of them end with."""
    found = list(names)
    alike = all(name.endswith(WEIGHT) and name != WEIGHT for name in found)
    return [name.removesuffix(WEIGHT) for name in found] if alike else found


def _end_of(sheet: Sheet, name: str, room: float) -> str:
    """Returns a name that fits; its end is what tells layers apart."""
    if sheet.measure(name) <= room:
        return name
    while name and sheet.measure(f"…{name}") > room:
        name = name[1:]
    return f"…{name}"
