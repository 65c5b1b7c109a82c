"""What a growing sparsity costs the classes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_fairprune import recalls, statistics
from lightning_fairprune.figures._classes import fractions, left_out
from lightning_fairprune.figures._compression import AXIS, mark, place
from lightning_fairprune.figures._sheet import COLOURS, GREY, GRID, Sheet, settings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLES = ("-", (0, (5, 2)), (0, (1.5, 1.5)))
DASHED: dict[str, Any] = {"linestyle": (0, (4, 3)), "linewidth": 1.0, "zorder": 1}
PANELS = {"worst": "worst class", "mean": "average over classes", "alpha": "α (intensification)"}
MOST_MARKERS = 12
# By sparsity, the recalls of the M models of a setting, [M, K].
Curve = dict[float, Tensor]


def sparsity_curve(
    recall: Mapping[str, Mapping[float, Tensor]],
    before: Mapping[str, Tensor] | None = None,
    *,
    narrow: bool = False,
) -> Figure:
    r"""Draws worst and average recall, and how far the classes drifted apart, against sparsity.

    The horizontal axis is spaced by the logarithm of the compression ratio :math:`1 / (1 - s)`. A line is the mean
    over the models of a label, a band goes from the lowest to the highest, dashed is what they are compared with.
    alpha is that of :func:`~lightning_fairprune.statistics.intensification_ratio`.

    Args:
        recall: by label, such as a setting, and by sparsity in [0, 1), the recalls of its M models, [M, K] or [K],
            in [0, 1]; NaN for a class without samples or a model that was not evaluated at that sparsity.
        before: by label, the recalls of what each model is compared with, likewise; None, or no entry, draws
            no alpha.
        narrow: for a phone.

    Returns:
        The figure.

    Raises:
        ValueError: If there is no label, one has no sparsity, or a value is out of range or of another shape.
        ImportError: If matplotlib is missing.

    Example:
        Balances of 1/8 either way become 1/6.

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
    with settings():
        sheet = Sheet(narrow)
        _legend(sheet, curves, dashed=bool(reference))
        panels = list(PANELS) if reference else list(PANELS)[:2]
        rows = [[what] for what in panels] if narrow else [panels]
        places = [place(s) for curve in curves.values() for s in curve]
        low, high = min(places), max(places)
        room = 0.06 * (high - low) or 0.1
        for row in rows:
            axes = sheet.axes(
                1.7 if narrow else 2.4, above=[PANELS[what] for what in row], bold=True
            )
            for axis, what in zip(axes, row, strict=True):
                for i, (label, curve) in enumerate(curves.items()):
                    if what != "alpha" or label in reference:
                        _draw(axis, _values(what, curve, reference.get(label)), _style(i))
                _compare(axis, what, reference, list(curves))
                axis.grid(axis="y", **GRID)
                axis.set_xlim(low - room, high + room)
                mark(sheet, axis, places)
            sheet.below(axes, AXIS)
        most = max(len(values) for curve in curves.values() for values in curve.values())
        if most > 1:
            sheet.text(f"Lines: mean over up to {most} seeds; bands: lowest to highest.")
        sheet.text(left_out(max(_unseen(curve) for curve in curves.values())))
        return sheet.finish()


def _curve(label: str, values: Mapping[float, Tensor]) -> Curve:
    """Returns recalls as float64 [M, K], the lowest sparsity first."""
    if not values:
        raise ValueError(f"`recall` must hold at least one sparsity of each label, got {label!r}.")
    found: Curve = {}
    for sparsity in sorted(values):
        if not 0 <= sparsity < 1:
            raise ValueError(
                f"`recall` must be by sparsity, in [0, 1), got {sparsity:g} of {label!r}."
            )
        found[sparsity] = _models("recall", values[sparsity])
    shapes = sorted({tuple(value.shape) for value in found.values()})
    if len(shapes) > 1:
        raise ValueError(
            "`recall` must have the same models and classes at every sparsity, got "
            f"{list(shapes[0])} and {list(shapes[1])} of {label!r}."
        )
    return found


def _models(name: str, value: Tensor) -> Tensor:
    found = fractions(name, value)
    if found.ndim not in (1, 2) or not found.numel():
        raise ValueError(f"`{name}` must be [K], or [M, K] of M models, got {list(found.shape)}.")
    return found if found.ndim == 2 else found[None]


def _reference(before: Mapping[str, Tensor], curves: Mapping[str, Curve]) -> dict[str, Tensor]:
    found = {}
    for label, value in before.items():
        if label not in curves:
            raise ValueError(f"`before` must be of labels of `recall`, got {label!r}.")
        found[label] = _models("before", value)
        shape = next(iter(curves[label].values())).shape
        if found[label].shape != shape:
            raise ValueError(
                f"`before` must have the models and classes of `recall`, {list(shape)}, got "
                f"{list(found[label].shape)} of {label!r}."
            )
    return found


def _values(what: str, curve: Curve, before: Tensor | None) -> dict[float, Tensor]:
    """Returns what is drawn of each model, [M], by place on the axis; a place without any is left out."""
    found = {place(s): _value(what, recall, before) for s, recall in curve.items()}
    return {at: values for at, values in found.items() if not bool(values.isnan().all())}


def _value(what: str, recall: Tensor, before: Tensor | None) -> Tensor:
    if what == "alpha" and before is not None:
        return statistics.intensification_ratio(before, recall)
    return recalls.worst(recall) if what == "worst" else recall.nanmean(-1)


def _draw(axis: Any, values: Mapping[float, Tensor], style: Mapping[str, Any]) -> None:
    if not values:
        return
    places, several = list(values), torch.stack(list(values.values()))
    marker = {"marker": "o", "markersize": 4} if len(places) <= MOST_MARKERS else {}
    axis.plot(places, several.nanmean(1).tolist(), **style, **marker)
    if several.shape[1] > 1:
        low = several.nan_to_num(torch.inf).amin(1).tolist()
        high = several.nan_to_num(-torch.inf).amax(1).tolist()
        axis.fill_between(places, low, high, color=style["color"], alpha=0.2, linewidth=0)


def _compare(axis: Any, what: str, reference: Mapping[str, Tensor], labels: Sequence[str]) -> None:
    """Adds what the models are compared with as dashed lines, a grey one where all share it."""
    if what == "alpha":
        axis.axhline(1, color=GREY, **DASHED)
        return
    levels = {label: float(_value(what, v, None).nanmean()) for label, v in reference.items()}
    shared = len({round(level, 9) for level in levels.values()}) == 1
    for label, level in levels.items():
        colour = GREY if shared else _style(labels.index(label))["color"]
        if not math.isnan(level):
            axis.axhline(level, color=colour, **DASHED)
        if shared:
            break


def _legend(sheet: Sheet, curves: Mapping[str, Curve], *, dashed: bool) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], label=label, marker="o", markersize=4, **_style(i))
        for i, label in enumerate(curves)
    ]
    if dashed:
        handles.append(Line2D([], [], label="reference", color=GREY, **DASHED))
    sheet.legend(handles)


def _style(i: int) -> dict[str, Any]:
    style = STYLES[i // len(COLOURS) % len(STYLES)]
    return {"color": COLOURS[i % len(COLOURS)], "linestyle": style, "linewidth": 1.8}


def _unseen(curve: Curve) -> int:
    every = torch.cat(list(curve.values()))
    return int(every.isnan().all(0).sum())
