"""Recalls against sparsity, and an axis of sparsities that separates 90, 99 and 99.9 %."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_fairprune import recalls, statistics
from lightning_fairprune.figures._classes import left_out, per_model
from lightning_fairprune.figures._lines import DASHED, draw, explain, handles, panels, style
from lightning_fairprune.figures._sheet import GREY, GRID, Sheet, paper
from lightning_fairprune.figures.words import in_percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AXIS = "sparsity in %, spaced by compression ratio"
# Tick labels of the axis, the most important first.
MARKS = (
    (0.0, 0.9, 0.99, 0.999, 0.9999),
    (0.5, 0.95, 0.98, 0.995, 0.9995),
    (0.8, 0.7, 0.3, 0.97, 0.998),
    (0.1, 0.2, 0.4, 0.6, 0.85, 0.93, 0.96, 0.985, 0.993, 0.997, 0.9998),
)
PANELS = {"worst": "worst class", "mean": "average over classes", "alpha": "α (intensification)"}
# The recalls of M models, [M, K], by sparsity.
Curve = dict[float, Tensor]


def sparsity_curve(
    recall: Mapping[str, Mapping[float, Tensor]],
    before: Mapping[str, Tensor] | None = None,
    *,
    narrow: bool = False,
) -> Figure:
    r"""Draws worst recall, average recall and the intensification ratio alpha against sparsity.

    The horizontal axis is spaced by the logarithm of the compression ratio :math:`1 / (1 - s)`. Lines are means
    over the models of a label, bands go from the lowest to the highest, dashed lines are the references. alpha is
    that of :func:`~lightning_fairprune.statistics.intensification_ratio`.

    Args:
        recall: by label, such as a setting, and by sparsity in [0, 1), the recalls of M models in [0, 1],
            [M, K] or [K]; NaN for a class without samples or a model not evaluated at that sparsity.
        before: by label, the recalls of the reference of each model, likewise; a label without them has no
            alpha.
        narrow: for a phone.

    Raises:
        ValueError: If there is no label, one has no sparsity, or a value is out of range or of another shape.

    Example:
        Balances of +-1/8 become +-1/6.

        >>> dense, sparse = torch.tensor([0.9, 0.7]), torch.tensor([0.7, 0.5])
        >>> figure = sparsity_curve({"magnitude": {0.0: dense, 0.9: sparse}}, {"magnitude": dense})
        >>> worst, mean, alpha = [axis.lines[0] for axis in figure.axes]
        >>> worst.get_xydata().round(3).tolist()
        [[0.0, 0.7], [1.0, 0.5]]
        >>> alpha.get_ydata().round(3).tolist()
        [1.0, 1.333]
    """
    curves = {label: _curve(label, one) for label, one in recall.items()}
    if not curves:
        raise ValueError("`recall` must hold at least one label, got none.")
    reference = _reference(before or {}, curves)
    with paper(narrow) as sheet:
        _legend(sheet, curves, dashed=bool(reference))
        shown = list(PANELS) if reference else list(PANELS)[:2]
        places = [place(s) for curve in curves.values() for s in curve]
        low, high = min(places), max(places)
        room = 0.06 * (high - low) or 0.1
        axes = panels(sheet, [PANELS[what] for what in shown], AXIS)
        for axis, what in zip(axes, shown, strict=True):
            for i, (label, curve) in enumerate(curves.items()):
                if what != "alpha" or label in reference:
                    _draw(axis, what, curve, reference.get(label), style(i))
            _compare(axis, what, reference, list(curves))
            axis.grid(axis="y", **GRID)
            axis.set_xlim(low - room, high + room)
            mark(sheet, axis, places)
        explain(sheet, max(len(values) for curve in curves.values() for values in curve.values()))
        sheet.text(left_out(max(_unseen(curve) for curve in curves.values())))
        return sheet.finish()


def place(sparsity: float) -> float:
    """Returns the position of a sparsity below 1: the logarithm of the compression ratio."""
    return math.log10(1 / (1 - sparsity))


def mark(sheet: Sheet, axis: Any, places: Sequence[float]) -> None:
    """Labels an axis with fixed limits: with round sparsities that fit, or else with those at `places`."""
    low, high = axis.get_xlim()
    inches = sheet.size_of(axis)[0] / (high - low)
    halves: dict[float, float] = {}  # of the width of each text

    def add(at: float) -> None:
        half = sheet.measure(_mark(at)) / 2 + 0.04
        if low <= at <= high and all(abs(p - at) * inches > h + half for p, h in halves.items()):
            halves[at] = half

    for sparsity in (s for marks in MARKS for s in marks):
        add(place(sparsity))
    if len(halves) < 2:
        halves.clear()
        add(min(places))
        add(max(places))
    axis.set_xticks(sorted(halves), [_mark(at) for at in sorted(halves)])


def _mark(at: float) -> str:
    return in_percent(1 - 10**-at)


def _curve(label: str, values: Mapping[float, Tensor]) -> Curve:
    """Returns recalls as float64 [M, K], the lowest sparsity first."""
    if not values:
        raise ValueError(f"`recall` must hold at least one sparsity of each label, got {label!r}.")
    found: Curve = {}
    for s in sorted(values):
        if not 0 <= s < 1:
            raise ValueError(f"`recall` must be by sparsity, in [0, 1), got {s:g} of {label!r}.")
        found[s] = per_model("recall", values[s])
    shapes = sorted({tuple(value.shape) for value in found.values()})
    if len(shapes) > 1:
        raise ValueError(
            "`recall` must have the same models and classes at every sparsity, got "
            f"{list(shapes[0])} and {list(shapes[1])} of {label!r}."
        )
    return found


def _reference(before: Mapping[str, Tensor], curves: Mapping[str, Curve]) -> dict[str, Tensor]:
    found = {}
    for label, value in before.items():
        if label not in curves:
            raise ValueError(f"`before` must be of labels of `recall`, got {label!r}.")
        found[label] = per_model("before", value)
        shape = next(iter(curves[label].values())).shape
        if found[label].shape != shape:
            raise ValueError(
                f"`before` must have the models and classes of `recall`, {list(shape)}, got "
                f"{list(found[label].shape)} of {label!r}."
            )
    return found


def _value(what: str, recall: Tensor, before: Tensor | None) -> Tensor:
    if what == "alpha" and before is not None:
        return statistics.intensification_ratio(before, recall)
    return recalls.worst(recall) if what == "worst" else recall.nanmean(-1)


def _draw(
    axis: Any, what: str, curve: Curve, before: Tensor | None, look: Mapping[str, Any]
) -> None:
    found = {place(s): _value(what, recall, before) for s, recall in curve.items()}
    found = {at: values for at, values in found.items() if not bool(values.isnan().all())}
    if found:
        draw(axis, list(found), torch.stack(list(found.values()), 1), look)


def _compare(axis: Any, what: str, reference: Mapping[str, Tensor], labels: Sequence[str]) -> None:
    """Adds the references as dashed lines, or as one grey line if all are equal."""
    if what == "alpha":
        axis.axhline(1, color=GREY, **DASHED)
        return
    levels = {label: float(_value(what, v, None).nanmean()) for label, v in reference.items()}
    shared = len({round(level, 9) for level in levels.values()}) == 1
    for label, level in levels.items():
        colour = GREY if shared else style(labels.index(label))["color"]
        if not math.isnan(level):
            axis.axhline(level, color=colour, **DASHED)
        if shared:
            break


def _legend(sheet: Sheet, curves: Mapping[str, Curve], *, dashed: bool) -> None:
    from matplotlib.lines import Line2D

    entries = handles(curves, marker="o", markersize=4)
    if dashed:
        entries.append(Line2D([], [], label="reference", color=GREY, **DASHED))
    sheet.legend(entries)


def _unseen(curve: Curve) -> int:
    every = torch.cat(list(curve.values()))
    return int(every.isnan().all(0).sum())
