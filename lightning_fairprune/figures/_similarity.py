"""Which layers of a network compute something else than those of another."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lightning_fairprune.figures._classes import MOST_ROWS
from lightning_fairprune.figures._sheet import COLOURS, GREY, GRID, LINE, PAD, Sheet, settings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMELESS = "the network"
MOST_MISSING = 8  # layers that a note names
STYLES = ("-", (0, (5, 2)), (0, (1.5, 1.5)))


def similarity(
    values: Mapping[str, Mapping[str, float]],
    *,
    measure: str = "linear CKA",
    narrow: bool = False,
) -> Figure:
    """Draws how alike each layer is to the same layer of a dense network, a line for each label.

    Layers are rows in their order, the first on top; of more than 40, only some are named.

    Args:
        values: by label, such as a setting, the value of each layer: from `representation.compare_layers`, in [-1, 1].
            NaN is not drawn.
        measure: what the values are.
        narrow: for a phone.

    Returns:
        The figure.

    Raises:
        ValueError: If there is no label, one has no layer, or a value is out of range.
        ImportError: If matplotlib is missing.

    Example:
        >>> figure = similarity({"90 % sparse": {"conv": 0.98, "fc": 0.61}})
        >>> figure.texts[0].get_text()
        'Least like the dense network: fc, linear CKA 0.61'
        >>> figure.axes[0].lines[0].get_xdata().tolist()
        [0.98, 0.61]
    """
    _check(values)
    layers = list(dict.fromkeys(layer for one in values.values() for layer in one))
    places = {layer: i for i, layer in enumerate(layers)}
    with settings():
        sheet = Sheet(narrow)
        sheet.title(_in_words(values, measure))
        known = [v for one in values.values() for v in one.values() if not math.isnan(v)]
        if not known:
            sheet.text("No layer has a value.")
            return sheet.finish()
        _legend(sheet, values)
        axis = _axis(sheet, layers)
        low = min(known)
        reach = max(1.0 - low, 0.01)
        axis.set_xlim(low - 0.06 * reach, 1 + 0.03 * reach)
        size = 5 if len(layers) <= MOST_ROWS else 2.5
        for i, one in enumerate(values.values()):
            drawn = [(v, places[layer]) for layer, v in one.items()]
            x, y = zip(*drawn, strict=True)
            axis.plot(x, y, marker="o", markersize=size, markeredgewidth=0, **_style(i))
        axis.axvline(1, color=GREY, linewidth=0.8, zorder=1)
        if low < 0:
            axis.axvline(0, color=GREY, linewidth=0.8, zorder=1)
        sheet.below(
            [axis],
            f"{measure} with the same layer of the dense network; 1: equal up to rotation and factor",
        )
        sheet.text(_missing(values))
        return sheet.finish()


def _check(values: Mapping[str, Mapping[str, float]]) -> None:
    if not values or not all(values.values()):
        raise ValueError(
            f"`values` must have at least one label with at least one layer, got {dict(values)}."
        )
    for label, one in values.items():
        for layer, value in one.items():
            if not (math.isnan(value) or -1 <= value <= 1):
                raise ValueError(
                    f"`values` must be in [-1, 1] or NaN, got {value:g} of layer {layer!r} of {label!r}."
                )


def _in_words(values: Mapping[str, Mapping[str, float]], measure: str) -> str:
    known = [
        (value, label, layer)
        for label, one in values.items()
        for layer, value in one.items()
        if not math.isnan(value)
    ]
    if not known:
        return f"There is nothing to compare: {measure} has no value"
    value, label, layer = min(known, key=lambda entry: entry[0])
    of = f" of {label}" if len(values) > 1 else ""
    return f"Least like the dense network: {layer or NAMELESS}{of}, {measure} {value:.2f}"


def _legend(sheet: Sheet, values: Mapping[str, Mapping[str, float]]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], label=label, marker="o", markersize=5, markeredgewidth=0, **_style(i))
        for i, label in enumerate(values)
    ]
    sheet.legend(handles)


def _axis(sheet: Sheet, layers: list[str]) -> Any:
    """Adds axes with a row for each layer; many are drawn closer together, and every so many is named."""
    every = math.ceil(len(layers) / MOST_ROWS)
    room = 1.5 if sheet.narrow else 2.9
    labels = [_end_of(sheet, layer, room) for layer in layers[::every]]
    left = max(sheet.measure(label) for label in labels)
    height = (LINE + 0.06) / every * len(layers)
    (axis,) = sheet.axes(max(height, 2 * LINE), left=PAD + left + 0.1)
    axis.set_ylim(len(layers) - 0.5, -0.5)
    axis.set_yticks(range(0, len(layers), every), labels)
    axis.tick_params(axis="y", length=0)
    axis.grid(**GRID)
    return axis


def _end_of(sheet: Sheet, layer: str, room: float) -> str:
    """Returns a name that fits; its end is what tells layers apart."""
    text = layer or NAMELESS
    if sheet.measure(text) <= room:
        return text
    while text and sheet.measure(f"…{text}") > room:
        text = text[1:]
    return f"…{text}"


def _missing(values: Mapping[str, Mapping[str, float]]) -> str:
    names = dict.fromkeys(
        layer or NAMELESS
        for one in values.values()
        for layer, value in one.items()
        if math.isnan(value)
    )
    told = ", ".join(list(names)[:MOST_MISSING])
    more = f" and {len(names) - MOST_MISSING} more" if len(names) > MOST_MISSING else ""
    return f"Without a value, as their output is constant: {told}{more}." if names else ""


def _style(i: int) -> dict[str, Any]:
    return {
        "color": COLOURS[i % len(COLOURS)],
        "linestyle": STYLES[i // len(COLOURS) % len(STYLES)],
        "linewidth": 1.5,
    }
