"""The share of every class that is kept, alone and against its recall."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from lightning_fairprune.figures._classes import Rows, curve, fractions, left_out, limits, named
from lightning_fairprune.figures._points import name_points
from lightning_fairprune.figures._sheet import BLUE, GRID, ORANGE, PALE, Sheet, paper

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMED = 20  # up to so many classes, all are named
EXTREMES = 3  # of more, so many at each end of either axis


def density_against_recall(
    density: Tensor,
    recall: Tensor,
    names: Sequence[object] | None = None,
    *,
    narrow: bool = False,
    repeat: int = 1,
) -> Figure:
    """Draws the share of each class that is kept against its recall.

    Up to 20 classes are named; of more, the three at either end of either axis. NaN leaves a class out.

    Args:
        density: kept share of each class in [0, repeat], [K]; NaN for a class without samples.
        recall: in [0, 1], [K]; for example those that the quotas follow, or those of a reference.
        names: of the classes; None for their numbers.
        narrow: for a phone.
        repeat: how often an epoch may draw the same sample.

    Raises:
        ValueError: If a value is out of range or shapes or names do not fit.

    Example:
        >>> import torch
        >>> figure = density_against_recall(torch.tensor([0.25, 0.5]), torch.tensor([0.75, 0.5]))
        >>> figure.axes[0].lines[0].get_xydata().tolist()
        [[0.75, 0.25], [0.5, 0.5]]
    """
    y, x = fractions("density", density, repeat), fractions("recall", recall)
    if y.ndim != 1 or x.shape != y.shape or not len(y):
        raise ValueError(
            f"`density` and `recall` must both be [K], got {list(y.shape)} and {list(x.shape)}."
        )
    names = named(names, len(y))
    known = ~(x + y).isnan()
    classes = known.nonzero().squeeze(1)
    with paper(narrow) as sheet:
        if not len(classes):
            sheet.text("No class has samples.")
            return sheet.finish()
        (axis,) = sheet.axes(3.6 if narrow else 4.2, above=["share that is kept"])
        few = len(classes) <= NAMED
        style = {"marker": "o", "linestyle": "", "color": BLUE, "alpha": 0.8, "markeredgewidth": 0}
        axis.plot(x[classes].tolist(), y[classes].tolist(), markersize=6 if few else 4, **style)
        axis.set_xlim(*limits(x[classes]))
        axis.set_ylim(*limits(y[classes]))
        axis.grid(**GRID)
        sheet.below([axis], "recall")
        shown = classes.tolist() if few else _extremes(x, y, classes)
        missing = name_points(sheet, axis, x, y, shown, names)
        if not few:
            sheet.text(f"{len(classes):,} classes; named are those at either end of either axis.")
        sheet.text(missing)
        sheet.text(left_out(len(y) - len(classes)))
        return sheet.finish()


def kept_by_class(
    quota: Tensor,
    sizes: Tensor,
    names: Sequence[object] | None = None,
    *,
    narrow: bool = False,
    repeat: int = 1,
) -> Figure:
    """Draws how many samples of each class are kept and dropped, the class with the lowest density on top.

    Samples that an epoch draws again follow those of the class in another colour.

    Of more than 40 classes, the 15 at either end are named and a curve shows all.

    Args:
        quota: samples kept of each class, int64 [K].
        sizes: samples of each class, int64 [K]; a class without any is left out.
        names: of the classes; None for their numbers.
        narrow: for a phone.
        repeat: how often an epoch may draw the same sample.

    Raises:
        ValueError: If a quota is not between 0 and `repeat` times the size or shapes or names do not fit.

    Example:
        >>> import torch
        >>> figure = kept_by_class(torch.tensor([3, 1]), torch.tensor([4, 4]), ["cat", "dog"])
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['dog', 'cat']
    """
    quota, sizes = kept_of("quota", quota, sizes, repeat)
    names = named(names, len(sizes))
    share = quota / sizes
    order = share.argsort(stable=True)[: int((sizes > 0).sum())]  # sorting puts NaN last
    with paper(narrow) as sheet:
        if len(order):
            _draw(sheet, quota, sizes, order, names)
        else:
            sheet.text("No class has samples.")
        sheet.text(left_out(len(sizes) - len(order)))
        return sheet.finish()


def kept_of(name: str, quota: Tensor, sizes: Tensor, repeat: int = 1) -> tuple[Tensor, Tensor]:
    """Returns both as float64 on the CPU."""
    if quota.ndim != 1 or quota.shape != sizes.shape or not len(quota):
        raise ValueError(
            f"`{name}` and `sizes` must both be [K], got {list(quota.shape)} and {list(sizes.shape)}."
        )
    quota, sizes = quota.detach().cpu().double(), sizes.detach().cpu().double()
    wrong = ~((quota >= 0) & (quota <= sizes * repeat))
    if bool(wrong.any()):
        k = int(wrong.nonzero()[0])
        often = "" if repeat == 1 else f"{repeat} times "
        raise ValueError(
            f"`{name}` must be between 0 and {often}the size of the class, "
            f"got {quota[k]:g} of {sizes[k]:g} for class {k}."
        )
    return quota, sizes


def _draw(sheet: Sheet, quota: Tensor, sizes: Tensor, order: Tensor, names: Sequence[str]) -> None:
    from matplotlib.patches import Patch

    rows = Rows(order)
    drawn, size = quota[rows.shown], sizes[rows.shown]
    kept = drawn.minimum(size)
    between = "\n" if sheet.narrow else "   "
    text = [
        f"{100 * (k / n):.1f} %{between}{int(k):,} of {int(n):,}"
        for k, n in zip(drawn.tolist(), size.tolist(), strict=True)
    ]
    all_kept, all_size = int(quota.sum()), int(sizes.sum())
    share = f"kept: {all_kept:,} of {all_size:,} ({100 * (all_kept / all_size):.1f} %)"
    entries = [Patch(color=BLUE, label=share), Patch(color=PALE, label="dropped")]
    again = int((quota - sizes).clamp(min=0).sum())
    if again:
        entries.append(Patch(color=ORANGE, label=f"of these drawn again: {again:,}"))
    sheet.legend(entries)
    axis, y = rows.draw(sheet, names, text, "kept")
    axis.barh(y, kept.numpy(), height=0.15, color=BLUE)
    axis.barh(y, (size - kept).numpy(), left=kept.numpy(), height=0.15, color=PALE)
    if again:
        axis.barh(y, (drawn - kept).numpy(), left=size.numpy(), height=0.15, color=ORANGE)
    axis.set_xlim(0, 1.02 * float(size.maximum(drawn).max()))
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axis.locator_params(axis="x", nbins=3 if sheet.narrow else 8)
    sheet.below([axis], "samples")
    if rows.hidden:
        curve(sheet, (quota / sizes)[order], "share kept")


def _extremes(x: Tensor, y: Tensor, classes: Tensor) -> list[int]:
    """Returns the classes at either end of either axis, each once."""
    found: dict[int, None] = {}
    for value in (x, y):
        order = classes[value[classes].argsort(stable=True)].tolist()
        found |= dict.fromkeys([*order[:EXTREMES], *order[-EXTREMES:]])
    return list(found)
