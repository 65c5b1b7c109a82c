"""The layers of a network: their sparsities, and their similarity to those of a dense network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lightning_fairprune.figures._classes import MOST_ROWS
from lightning_fairprune.figures._lines import DASHED, handles, style
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
    paper,
)
from lightning_fairprune.figures._sparsity import AXIS, mark, place
from lightning_fairprune.figures.words import in_percent, listed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TOTAL: dict[str, Any] = {**DASHED, "color": DARK, "zorder": 3}
WEIGHT = ".weight"  # left out if all names end with it
NAMELESS = "the network"


def layer_sparsity(
    layers: Mapping[str, float], *, total: float | None = None, narrow: bool = False
) -> Figure:
    """Draws the sparsity of each layer, the first on top; of more than 40, only some are named.

    The axis is that of `sparsity_curve`, which separates 99 and 99.9 %.

    Args:
        layers: sparsity of each layer, in [0, 1]; NaN is not drawn.
        total: sparsity of all these layers together, for a dashed line; None draws none.
        narrow: for a phone.

    Raises:
        ValueError: If there is no layer, or a value is out of range.

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
    with paper(narrow) as sheet:
        sheet.title(_ends_in_words(drawn))
        if total is not None:
            from matplotlib.lines import Line2D

            text = f"all these layers together: {in_percent(total)} %"
            sheet.legend([Line2D([], [], label=text, **TOTAL)])
        _bars(sheet, drawn, total)
        empty = [name for name, value in drawn.items() if value == 1]
        sheet.text(f"Without any weight left: {listed(empty)}." if empty else "")
        return sheet.finish()


def similarity(
    values: Mapping[str, Mapping[str, float]], *, measure: str = "linear CKA", narrow: bool = False
) -> Figure:
    """Draws the similarity of each layer to the same layer of a dense network, a line for each label.

    Layers are rows, the first on top; of more than 40, only some are named.

    Args:
        values: by label, such as a setting, the value of each layer, in [-1, 1], from
            `representation.compare_layers`. NaN is not drawn.
        measure: the name of the measure.
        narrow: for a phone.

    Raises:
        ValueError: If there is no label, one has no layer, or a value is out of range.

    Example:
        >>> figure = similarity({"90 % sparse": {"conv": 0.98, "fc": 0.61}})
        >>> figure.texts[0].get_text()
        'Least like the dense network: fc, linear CKA 0.61'
        >>> figure.axes[0].lines[0].get_xdata().tolist()
        [0.98, 0.61]
    """
    _check(values)
    layers = list(dict.fromkeys(layer for one in values.values() for layer in one))
    entries = [(v, label, layer) for label, one in values.items() for layer, v in one.items()]
    known = [entry for entry in entries if not math.isnan(entry[0])]
    with paper(narrow) as sheet:
        if not known:
            sheet.title(f"There is nothing to compare: {measure} has no value")
            sheet.text("No layer has a value.")
            return sheet.finish()
        low, label, layer = min(known, key=lambda entry: entry[0])
        of = f" of {label}" if len(values) > 1 else ""
        sheet.title(f"Least like the dense network: {layer or NAMELESS}{of}, {measure} {low:.2f}")
        sheet.legend(handles(values, 1.5, marker="o", markersize=5, markeredgewidth=0))
        axis = _rows(sheet, [layer or NAMELESS for layer in layers])
        axis.grid(**GRID)
        reach = max(1.0 - low, 0.01)
        axis.set_xlim(low - 0.06 * reach, 1 + 0.03 * reach)
        size = 5 if len(layers) <= MOST_ROWS else 2.5
        for i, one in enumerate(values.values()):
            y = [layers.index(layer) for layer in one]
            dots: dict[str, Any] = {"marker": "o", "markersize": size, "markeredgewidth": 0}
            axis.plot(list(one.values()), y, **dots, **style(i, 1.5))
        for at in (1, 0) if low < 0 else (1,):
            axis.axvline(at, color=GREY, linewidth=0.8, zorder=1)
        sheet.below(
            [axis],
            f"{measure} with the same layer of the dense network; 1: equal up to rotation and factor",
        )
        flat = list(dict.fromkeys(layer or NAMELESS for v, _, layer in entries if math.isnan(v)))
        sheet.text(f"Without a value, as their output is constant: {listed(flat)}." if flat else "")
        return sheet.finish()


def _bars(sheet: Sheet, layers: Mapping[str, float], total: float | None) -> None:
    few = len(layers) <= MOST_ROWS
    said = [f"{in_percent(value)} %" for value in layers.values()] if few else []
    right = max([0.25, *(sheet.measure(text) + 0.2 for text in said)])
    alike = all(name.endswith(WEIGHT) and name != WEIGHT for name in layers)
    axis = _rows(sheet, [n.removesuffix(WEIGHT) if alike else n for n in layers], right)
    known = [v for v in (*layers.values(), total or 0.0) if v < 1]
    far = 1.05 * place(max([0.1, *known]))
    # A layer without any weight has no compression ratio: its bar is as long as the axis.
    widths = [place(value) if value < 1 else far for value in layers.values()]
    colours = [VERMILION if value == 1 else BLUE for value in layers.values()]
    axis.barh(range(len(layers)), widths, height=0.72, color=colours)
    beside = {"transform": axis.get_yaxis_transform(), "va": "center", "color": DARK}
    for row, text in enumerate(said):
        axis.text(1 + 0.1 / sheet.size_of(axis)[0], row, text, fontsize=FONT, **beside)
    if total is not None:
        axis.axvline(place(total) if total < 1 else far, **TOTAL)
    axis.set_xlim(0, far)
    mark(sheet, axis, [0.0, far])
    axis.grid(axis="x", **GRID)
    sheet.below([axis], AXIS)


def _rows(sheet: Sheet, names: Sequence[str], right: float = 0.25) -> Any:
    """Adds axes with a row for each layer; many rows are closer together and not all named."""
    every = math.ceil(len(names) / MOST_ROWS)
    labels = [_end_of(sheet, name) for name in names[::every]]
    left = PAD + max(sheet.measure(label) for label in labels) + 0.1
    height = (LINE + 0.06) / every * len(names)
    (axis,) = sheet.axes(max(height, 2 * LINE), left=left, right=right)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.set_yticks(range(0, len(names), every), labels)
    axis.tick_params(axis="y", length=0)
    return axis


def _end_of(sheet: Sheet, name: str) -> str:
    """Returns the end of a name, which identifies the layer, as far as it fits."""
    if sheet.measure(name) <= sheet.room:
        return name
    while name and sheet.measure(f"…{name}") > sheet.room:
        name = name[1:]
    return f"…{name}"


def _ends_in_words(layers: Mapping[str, float]) -> str:
    most, least = max(layers, key=layers.__getitem__), min(layers, key=layers.__getitem__)
    text = f"{most}, {in_percent(layers[most])} %"
    if layers[most] == layers[least]:
        return f"Every layer: {in_percent(layers[most])} %" if len(layers) > 1 else text
    return f"Sparsest: {text}; densest: {least}, {in_percent(layers[least])} %"


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
