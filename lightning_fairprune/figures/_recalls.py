"""Recall of every class, before and after."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_fairprune import statistics
from lightning_fairprune.figures._classes import Rows, left_out, named
from lightning_fairprune.figures._sheet import (
    BLUE,
    DARK,
    FAINT,
    GREY,
    VERMILION,
    Sheet,
    settings,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FEW = 5  # seeds, below which lowest and highest say more than an interval


def recall_by_class(
    before: Tensor | None,
    after: Tensor,
    names: Sequence[object] | None = None,
    *,
    title: str = "",
    labels: tuple[str, str] = ("reference", "run"),
    narrow: bool = False,
) -> Figure:
    """Draws the recall of each class in two results, the class that lost most on top.

    Without `before`, the class with the lowest recall is on top. Of more than 40 classes, the 15 at either end
    are named and a curve shows all. A class that is NaN in either result is left out.

    Args:
        before: recalls in [0, 1] to compare with, [K] or [M, K] for M seeds; None for nothing.
        after: recalls, [K] or [M, K]; the numbers of seeds may differ.
        names: of the classes; None for their numbers.
        title: of the figure; "" for none.
        labels: how to call `before` and `after`.
        narrow: for a phone.

    Returns:
        The figure.

    Raises:
        ValueError: If a recall is not in [0, 1] or shapes or names do not fit.
        ImportError: If matplotlib is missing; or scipy, with five seeds or more.

    Example:
        >>> figure = recall_by_class(
        ...     torch.tensor([0.9, 0.8]), torch.tensor([0.9, 0.6]), ["cat", "dog"]
        ... )
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['dog', 'cat']
    """
    second = recalls("after", after)
    num_classes = second.shape[1]
    names = named(names, num_classes)
    first = None if before is None else recalls("before", before)
    if first is not None and first.shape[1] != num_classes:
        raise ValueError(
            f"`before` and `after` must have the same classes, got {first.shape[1]} and {num_classes}."
        )
    means = [second.nanmean(0)] if first is None else [second.nanmean(0), first.nanmean(0)]
    known = ~torch.stack(means).isnan().any(0)
    key = means[0] if first is None else means[0] - means[1]
    order = key.masked_fill(~known, torch.inf).argsort(stable=True)[: int(known.sum())]
    with settings():
        sheet = Sheet(narrow)
        sheet.title(title)
        if len(order):
            _draw(sheet, first, second, order, names, labels)
        else:
            sheet.text("No class has samples.")
        sheet.text(left_out(num_classes - len(order)))
        return sheet.finish()


def recalls(name: str, value: Tensor) -> Tensor:
    """Returns float64 [M, K] on the host."""
    found = value.detach().cpu().double()
    found = found[None] if found.ndim == 1 else found
    if found.ndim != 2 or not found.numel():
        raise ValueError(
            f"`{name}` must be [K], or [M, K] for M seeds, with at least one class, "
            f"got {list(value.shape)}."
        )
    wrong = (found < 0) | (found > 1)
    if bool(wrong.any()):
        raise ValueError(
            f"`{name}` must be recalls in [0, 1], NaN for a class without samples, "
            f"got {float(found[wrong][0]):g}."
        )
    return found


def interval(values: Tensor) -> tuple[Tensor, Tensor]:
    """Returns lowest and highest of [M, n] over the seeds, or the ends of the t interval from five on."""
    if len(values) < FEW:
        infinite = values.masked_fill(values.isnan(), torch.inf)
        return infinite.amin(0), values.masked_fill(values.isnan(), -torch.inf).amax(0)
    ends = [statistics.summarise(column, 0.95) for column in values.T]
    return torch.tensor([s.low for s in ends]), torch.tensor([s.high for s in ends])


def interval_in_words(*seeds: int) -> str:
    """Returns what the bars of `interval` are, for the label of an axis; "" for one seed."""
    several = sorted({n for n in seeds if n > 1})
    if not several:
        return ""
    if len(several) == 1:
        how = "lowest to highest" if several[0] < FEW else "95 % t interval"
        return f"mean of {several[0]} seeds, bars: {how}"
    if several[0] < FEW <= several[1]:
        how = f"lowest to highest of {several[0]}, 95 % t interval of {several[1]}"
    else:
        how = "95 % t interval" if several[0] >= FEW else "lowest to highest"
    return f"mean of {several[0]} and {several[1]} seeds, bars: {how}"


def _draw(
    sheet: Sheet,
    first: Tensor | None,
    second: Tensor,
    order: Tensor,
    names: Sequence[str],
    labels: tuple[str, str],
) -> None:
    from matplotlib.lines import Line2D

    rows = Rows(order)
    after = second.nanmean(0)
    before = after if first is None else first.nanmean(0)
    change = after - before
    fell = change < 0
    text = (
        [f"{value:.3f}" for value in after[rows.shown].tolist()]
        if first is None
        else [f"{value:+.3f}".replace("-", "−") for value in change[rows.shown].tolist()]
    )
    dot: dict[str, Any] = {"linestyle": "", "markersize": 6.5}
    mean = float(after[order].mean())
    reference: dict[str, Any] = {
        "marker": "o",
        "markerfacecolor": "white",
        "markeredgecolor": GREY,
        **dot,
    }
    higher, lower = (
        {"marker": "o", "color": BLUE, **dot},
        {"marker": "D", "color": VERMILION, **dot},
    )
    thin: dict[str, Any] = {"linewidth": 1.0, "zorder": 1}
    mean_line: dict[str, Any] = {"color": DARK, **thin}
    handles = [Line2D([], [], label=labels[1], **higher)]
    if first is not None:
        mean_before = float(before[order].mean())
        dashed: dict[str, Any] = {"color": GREY, "linestyle": (0, (4, 3)), **thin}
        handles = [
            Line2D([], [], label=labels[0], **reference),
            Line2D([], [], label=f"mean of {labels[0]}: {mean_before:.3f}", **dashed),
        ]
        if bool((~fell[rows.shown]).any()):
            handles.insert(1, Line2D([], [], label=f"{labels[1]}, higher or the same", **higher))
        if bool(fell[rows.shown].any()):
            handles.insert(1, Line2D([], [], label=f"{labels[1]}, lower", **lower))
    handles.append(Line2D([], [], label=f"mean of {labels[1]}: {mean:.3f}", **mean_line))
    sheet.legend(handles)
    axis, y = rows.draw(sheet, names, text, "recall" if first is None else "change")
    edges = [after[rows.shown], before[rows.shown]]

    colours = [VERMILION if down else BLUE for down in fell[rows.shown].tolist()]
    for values, colour in ((first, GREY), (second, colours)):
        if values is not None and len(values) > 1:
            low, high = interval(values[:, rows.shown])
            axis.hlines(y, low, high, colors=colour, linewidth=7, alpha=0.25, zorder=2)
            edges += [low[~low.isnan()], high[~high.isnan()]]
    axis.axvline(mean, **mean_line)
    if first is not None:
        axis.axvline(mean_before, **dashed)
        axis.hlines(y, before[rows.shown], after[rows.shown], colors=colours, linewidth=2, zorder=3)
        axis.plot(before[rows.shown], y, zorder=4, **reference)
    for these, style in ((fell[rows.shown], lower), (~fell[rows.shown], higher)):
        if bool(these.any()):
            axis.plot(after[rows.shown][these], y[these], zorder=5, **style)
    axis.set_xlim(*limits(torch.cat(edges)))
    bars = interval_in_words(*[len(values) for values in (first, second) if values is not None])
    sheet.below([axis], f"recall ({bars})" if bars else "recall")
    if rows.hidden:
        curve(sheet, after[order] if first is None else change[order], first is not None)


def limits(values: Tensor) -> tuple[float, float]:
    """Returns the ends of an axis of recalls: all values with some room, hardly beyond 0 and 1."""
    low, high = float(values.min()), float(values.max())
    room = max(0.06 * (high - low), 0.01)
    return max(low - room, min(-0.02, low)), min(high + room, max(1.02, high))


def curve(sheet: Sheet, values: Tensor, compared: bool) -> None:
    """Adds all values, sorted, as a line."""
    sheet.gap(0.1)
    (axis,) = sheet.axes(1.5, left=0.75, right=0.2)
    places = torch.arange(1, len(values) + 1)
    axis.plot(places, values, color=DARK, linewidth=1.5)
    if compared:
        for side, colour in ((values < 0, VERMILION), (values >= 0, BLUE)):
            axis.fill_between(places, values, 0, where=side.numpy(), color=colour, alpha=0.35, lw=0)
        axis.axhline(0, color=GREY, linewidth=0.8)
    axis.set_xlim(1, len(values))
    axis.set_ylabel("change" if compared else "recall", fontsize=10, color=DARK)
    axis.grid(axis="y", color=FAINT)
    sheet.below([axis], f"all {len(values):,} classes, from the lowest to the highest")
