"""Recall of every class, before and after."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_fairprune import statistics
from lightning_fairprune.figures._classes import Rows, curve, left_out, limits, named, per_model
from lightning_fairprune.figures._lines import DASHED, extremes
from lightning_fairprune.figures._sheet import BLUE, DARK, GREY, VERMILION, Sheet, paper

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DOT: dict[str, Any] = {"linestyle": "", "marker": "o", "markersize": 6.5}
BEFORE: dict[str, Any] = {**DOT, "markerfacecolor": "white", "markeredgecolor": GREY}
HIGHER: dict[str, Any] = {**DOT, "color": BLUE}
LOWER: dict[str, Any] = {**DOT, "color": VERMILION, "marker": "D"}
AFTER_MEAN: dict[str, Any] = {**DASHED, "color": DARK, "linestyle": "-"}
BEFORE_MEAN: dict[str, Any] = {**DASHED, "color": GREY}
FEW = 5  # seeds; below, lowest and highest are more informative than an interval


def recall_by_class(
    before: Tensor | None,
    after: Tensor,
    names: Sequence[object] | None = None,
    *,
    title: str = "",
    labels: tuple[str, str] = ("reference", "run"),
    narrow: bool = False,
) -> Figure:
    """Draws the recall of each class before and after, the class that lost most on top.

    Without `before`, the class with the lowest recall is on top. Of more than 40 classes, the 15 at either end
    are named and a curve shows all. NaN leaves a class out.

    Args:
        before: recalls in [0, 1] to compare with, [K] or [M, K] for M seeds, or None.
        after: recalls, [K] or [M, K]; the numbers of seeds may differ.
        names: of the classes; None for their numbers.
        title: of the figure.
        labels: names of `before` and `after`.
        narrow: for a phone.

    Raises:
        ValueError: If a recall is not in [0, 1] or shapes or names do not fit.
        ImportError: If scipy is missing, with five seeds or more.

    Example:
        >>> figure = recall_by_class(
        ...     torch.tensor([0.9, 0.8]), torch.tensor([0.9, 0.6]), ["cat", "dog"]
        ... )
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['dog', 'cat']
    """
    second = per_model("after", after)
    num_classes = second.shape[1]
    names = named(names, num_classes)
    first = None if before is None else per_model("before", before)
    if first is not None and first.shape[1] != num_classes:
        raise ValueError(
            f"`before` and `after` must have the same classes, got {first.shape[1]} and {num_classes}."
        )
    means = [second.nanmean(0)] if first is None else [second.nanmean(0), first.nanmean(0)]
    known = ~torch.stack(means).isnan().any(0)
    key = means[0] if first is None else means[0] - means[1]
    order = key.masked_fill(~known, torch.inf).argsort(stable=True)[: int(known.sum())]
    with paper(narrow) as sheet:
        sheet.title(title)
        if len(order):
            _draw(sheet, first, second, order, names, labels)
        else:
            sheet.text("No class has samples.")
        sheet.text(left_out(num_classes - len(order)))
        return sheet.finish()


def interval(values: Tensor) -> tuple[Tensor, Tensor]:
    """Returns lowest and highest of [M, n] over the seeds, or the t interval of five or more."""
    if len(values) < FEW:
        return extremes(values)
    mean, reach = values.nanmean(0), statistics.half_widths(values, 0.95)
    return mean - reach, mean + reach


def interval_in_words(*seeds: int) -> str:
    """Returns the explanation of the bars of `interval`; "" for one seed."""
    several = sorted({n for n in seeds if n > 1})
    if not several:
        return ""
    kinds = ["lowest to highest" if n < FEW else "95 % t interval" for n in several]
    if len(set(kinds)) > 1:
        kinds = [f"{kind} of {n}" for kind, n in zip(kinds, several, strict=True)]
    how, counts = ", ".join(dict.fromkeys(kinds)), " and ".join(map(str, several))
    return f"mean of {counts} seeds, bars: {how}"


def _draw(
    sheet: Sheet,
    first: Tensor | None,
    second: Tensor,
    order: Tensor,
    names: Sequence[str],
    labels: tuple[str, str],
) -> None:
    rows = Rows(order)
    shown = rows.shown
    after = second.nanmean(0)
    before = after if first is None else first.nanmean(0)
    change = after - before
    fell = change[shown] < 0
    means = (float(before[order].mean()), float(after[order].mean()))
    if first is None:
        column = [f"{value:.3f}" for value in after[shown].tolist()]
    else:
        column = [f"{value:+.3f}".replace("-", "−") for value in change[shown].tolist()]
    sheet.legend(_handles(first is not None, fell, means, labels))
    axis, y = rows.draw(sheet, names, column, "recall" if first is None else "change")

    colours = [VERMILION if down else BLUE for down in fell.tolist()]
    edges = [after[shown], before[shown], torch.tensor(means, dtype=torch.float64)]
    for values, colour in ((first, GREY), (second, colours)):
        if values is not None and len(values) > 1:
            low, high = interval(values[:, shown])
            bar = {"linewidth": 7, "alpha": 0.25, "zorder": 2}
            axis.hlines(y, low.numpy(), high.numpy(), colors=colour, **bar)
            edges += [low[~low.isnan()], high[~high.isnan()]]
    axis.axvline(means[1], **AFTER_MEAN)
    x = after[shown].numpy()
    if first is not None:
        axis.axvline(means[0], **BEFORE_MEAN)
        axis.hlines(y, before[shown].numpy(), x, colors=colours, linewidth=2, zorder=3)
        axis.plot(before[shown].numpy(), y, zorder=4, **BEFORE)
    for these, style in ((fell.numpy(), LOWER), (~fell.numpy(), HIGHER)):
        if these.any():
            axis.plot(x[these], y[these], zorder=5, **style)
    axis.set_xlim(*limits(torch.cat(edges)))
    bars = interval_in_words(*[len(values) for values in (first, second) if values is not None])
    sheet.below([axis], f"recall ({bars})" if bars else "recall")
    if rows.hidden and first is None:
        curve(sheet, after[order], "recall")
    elif rows.hidden:
        curve(sheet, change[order], "change", compared=True)


def _handles(
    compared: bool, fell: Tensor, means: tuple[float, float], labels: tuple[str, str]
) -> list[Any]:
    from matplotlib.lines import Line2D

    mean = Line2D([], [], label=f"mean of {labels[1]}: {means[1]:.3f}", **AFTER_MEAN)
    if not compared:
        return [Line2D([], [], label=labels[1], **HIGHER), mean]
    found = [Line2D([], [], label=labels[0], **BEFORE)]
    if bool(fell.any()):
        found.append(Line2D([], [], label=f"{labels[1]}, lower", **LOWER))
    if not bool(fell.all()):
        found.append(Line2D([], [], label=f"{labels[1]}, higher or the same", **HIGHER))
    found.append(Line2D([], [], label=f"mean of {labels[0]}: {means[0]:.3f}", **BEFORE_MEAN))
    return [*found, mean]
