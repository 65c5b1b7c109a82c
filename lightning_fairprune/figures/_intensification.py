"""The balance of every class before and after pruning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_fairprune import recalls, statistics
from lightning_fairprune.figures._classes import fractions, left_out, named
from lightning_fairprune.figures._lines import DASHED
from lightning_fairprune.figures._points import name_points
from lightning_fairprune.figures._sheet import BLUE, GREY, GRID, SKY, VERMILION, Sheet, paper

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMED, NAMED_NARROW = 20, 10  # up to so many classes, all are named
FARTHEST = 8  # of more, those that moved farthest from the dashed line
WORDS = {">": "widens", "<": "shrinks", "?": "does not clearly change"}


def intensification_scatter(
    before: Tensor, after: Tensor, names: Sequence[object] | None = None, *, narrow: bool = False
) -> Figure:
    r"""Draws the normalised recall balance of every class and model after pruning against that before.

    .. math:: \bar B^c = (R^c - A) / A

    with A the mean recall of the model. The slope of the line through the origin is above 1 if pruning widens the
    differences between classes: Good et al., "Recall Distortion in Neural Network Pruning and the Undecayed
    Pruning Algorithm" (NeurIPS 2022), Figure 5. With several models, dark dots are means over them, and the title
    has the mean ratio and its 99 % interval.

    Args:
        before: recalls of M models in [0, 1], [M, K] or [K].
        after: recalls of the same models after pruning, likewise.
        names: of the classes; None for their numbers.
        narrow: for a phone.

    Raises:
        ValueError: If a recall is not in [0, 1] or shapes or names do not fit.
        ImportError: If scipy is missing, with several models.

    Example:
        Balances of +-1/8 become +-1/6.

        >>> figure = intensification_scatter(torch.tensor([0.9, 0.7]), torch.tensor([0.7, 0.5]))
        >>> figure.texts[0].get_text()
        'Pruning widens the differences between classes: α = 1.33'
    """
    first, second = fractions("before", before), fractions("after", after)
    if first.shape != second.shape or first.ndim not in (1, 2) or not first.numel():
        raise ValueError(
            "`before` and `after` must have one shape, [M, K] or [K], got "
            f"{list(first.shape)} and {list(second.shape)}."
        )
    first, second = first.reshape(-1, first.shape[-1]), second.reshape(-1, second.shape[-1])
    names = named(names, first.shape[1])
    missing = first.isnan() | second.isnan()
    x = recalls.normalised_balance(first.masked_fill(missing, torch.nan))
    y = recalls.normalised_balance(second.masked_fill(missing, torch.nan))
    unknown = (x + y).isnan()
    x, y = x.masked_fill(unknown, torch.nan), y.masked_fill(unknown, torch.nan)
    with paper(narrow) as sheet:
        sheet.title(_in_words(first, second))
        if bool(unknown.all()):
            sheet.text("No class has samples.")
            return sheet.finish()
        sheet.text("α above 1: the differences widen; below 1: they shrink.")
        gone = int(unknown.all(0).sum())
        _draw(sheet, x, y, statistics.intensification_line(first, second), names)
        sheet.text(left_out(gone))
        return sheet.finish()


def _in_words(before: Tensor, after: Tensor) -> str:
    alpha = statistics.intensification_ratio(before, after)
    if bool(alpha.isnan().all()):
        return "The differences between classes cannot be compared: there were none"
    if len(alpha) == 1:
        shown = round(float(alpha), 2)
        label = ">" if shown > 1 else "<" if shown < 1 else "?"
        return f"Pruning {WORDS[label]} the differences between classes: α = {shown:.2f}"
    found = statistics.summarise(alpha)
    interval = (
        f", 99 % interval {found.low:.2f} to {found.high:.2f}" if found.num_models > 1 else ""
    )
    return (
        f"Pruning {WORDS[found.label]} the differences between classes: mean α = {found.mean:.2f} "
        f"of {found.num_models} models{interval} ({found.label})"
    )


def _draw(
    sheet: Sheet, x: Tensor, y: Tensor, line: tuple[float, float], names: Sequence[str]
) -> None:
    from matplotlib.lines import Line2D

    several, few = len(x) > 1, x.shape[1] <= 100
    slope, r2 = line
    dot: dict[str, Any] = {"linestyle": "", "marker": "o", "markeredgewidth": 0}
    mean: dict[str, Any] = {**dot, "color": BLUE, "alpha": 0.9, "markersize": 6 if few else 3.5}
    one: dict[str, Any] = {**dot, "color": SKY, "alpha": 0.7, "markersize": 4 if few else 2.5}
    same: dict[str, Any] = {**DASHED, "color": GREY, "linewidth": 1.2, "zorder": 2.5}
    fit: dict[str, Any] = {"color": VERMILION, "linewidth": 1.8, "zorder": 2.5}
    handles = [
        Line2D([], [], label="class, mean over models" if several else "class", **mean),
        Line2D([], [], label="no change", **same),
        Line2D([], [], label=f"line through all points: slope {slope:.2f}, r² = {r2:.2f}", **fit),
    ]
    if several:
        handles.insert(1, Line2D([], [], label="class in one model", **one))
    sheet.legend(handles)

    (axis,) = sheet.axes(3.4 if sheet.narrow else 4.6, above=["recall balance after pruning"])
    mean_x, mean_y = x.nanmean(0), y.nanmean(0)
    if several:
        axis.plot(x.flatten().tolist(), y.flatten().tolist(), **one)
    axis.plot(mean_x.tolist(), mean_y.tolist(), **mean)
    for values, setter in ((x, axis.set_xlim), (y, axis.set_ylim)):
        known = values[~values.isnan()]
        low, high = min(float(known.min()), 0.0), max(float(known.max()), 0.0)
        room = max(0.08 * (high - low), 0.005)
        setter(low - room, high + room)
    ends = axis.get_xlim()
    axis.plot(ends, ends, **same)
    axis.plot(ends, [slope * end for end in ends], **fit)
    axis.grid(**GRID)
    sheet.below([axis], "recall balance before pruning: (recall − mean recall) / mean recall")
    known = (~(mean_x + mean_y).isnan()).nonzero().squeeze(1)
    distance = (mean_y - mean_x).abs()
    if len(known) > (NAMED_NARROW if sheet.narrow else NAMED):
        known = known[distance[known].argsort(descending=True, stable=True)][:FARTHEST]
        sheet.text(f"Named are the {FARTHEST} classes that moved farthest from the dashed line.")
    sheet.text(name_points(sheet, axis, mean_x, mean_y, known.tolist(), names))
