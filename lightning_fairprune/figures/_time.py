"""Recalls and quotas over the epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from lightning_fairprune.figures._classes import left_out, limits, named
from lightning_fairprune.figures._kept import kept_of
from lightning_fairprune.figures._lines import DASHED, draw, explain, handles, marker, panels, style
from lightning_fairprune.figures._sheet import DARK, FONT, GREY, GRID, LINE, PALE, Sheet, paper
from lightning_fairprune.records.recall_history import Evaluation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANELS = {"worst": "worst class", "mean": "average over classes", "gap": "best minus worst class"}
MOST_LINES = 10  # of more, only EXTREMES classes at either end have a colour and a name
EXTREMES = 4
LINK: dict[str, Any] = {"arrowstyle": "-", "linewidth": 0.8, "relpos": (0, 0.5)}


class EstimateLike(Protocol):
    """The drawn part of :class:`~lightning_fairprune.selection.decision.Estimate`."""

    @property
    def epoch(self) -> int: ...

    @property
    def quota(self) -> Tensor | None: ...


def recalls_over_epochs(
    runs: Mapping[str, Sequence[Sequence[Evaluation]]], *, narrow: bool = False
) -> Figure:
    """Draws worst recall, average recall and their gap over the epochs, one colour for each label.

    Lines are means over the seeds, bands go from lowest to highest. A dashed line marks the first evaluation after
    pruning, if there are earlier ones. Of several evaluations in one epoch, the last is drawn.

    Args:
        runs: by label, the evaluations of each seed on one data set.
        narrow: for a phone.

    Raises:
        ValueError: If a label has no evaluation, or a run has evaluations of several data sets.

    Example:
        >>> from lightning_fairprune.counts import ClassCounts
        >>> counts = ClassCounts(torch.tensor([9, 3]), torch.tensor([10, 5]))
        >>> figure = recalls_over_epochs({"DRoP": [[Evaluation("val", 1, 100, False, counts)]]})
        >>> [axis.get_title(loc="left") for axis in figure.axes]
        ['worst class', 'average over classes', 'best minus worst class']
    """
    _check(runs)
    turns = {label: _turns(seeds) for label, seeds in runs.items()}
    with paper(narrow) as sheet:
        from matplotlib.lines import Line2D

        entries = handles(runs)
        if any(turns.values()):
            entries.append(Line2D([], [], label="pruned from here on", color=GREY, **DASHED))
        sheet.legend(entries)
        axes = panels(sheet, list(PANELS.values()), "epoch")
        for axis, what in zip(axes, PANELS, strict=True):
            for i, (label, seeds) in enumerate(runs.items()):
                _draw_runs(axis, seeds, what, style(i))
                for epoch in turns[label]:
                    shared = sum(epoch in others for others in turns.values()) > 1
                    axis.axvline(epoch, color=GREY if shared else style(i)["color"], **DASHED)
            axis.grid(axis="y", **GRID)
            _whole_epochs(axis)
        explain(sheet, max(len(seeds) for seeds in runs.values()))
        evaluations = [e for seeds in runs.values() for seed in seeds for e in seed]
        sheet.text(left_out(max(int((e.counts.support == 0).sum()) for e in evaluations)))
        return sheet.finish()


def quotas_over_time(
    history: Sequence[EstimateLike],
    sizes: Tensor,
    names: Sequence[object] | None = None,
    *,
    narrow: bool = False,
    repeat: int = 1,
) -> Figure:
    """Draws the share of each class that is kept over the estimates of the quotas.

    Of more than ten classes, the four with the lowest and highest density at the end are named.

    Args:
        history: the estimates, as in `PruningRecord.history`; those without quotas are skipped.
        sizes: samples of each class, int64 [K]; a class without any is left out.
        names: of the classes; None for their numbers.
        narrow: for a phone.
        repeat: how often an epoch may draw the same sample.

    Raises:
        ValueError: If a quota is not between 0 and `repeat` times the size or shapes or names do not fit.

    Example:
        >>> from lightning_fairprune.selection.decision import Estimate
        >>> history = [
        ...     Estimate(2, None, torch.tensor([3, 1])),
        ...     Estimate(4, None, torch.tensor([2, 2])),
        ... ]
        >>> figure = quotas_over_time(history, torch.tensor([4, 4]))
        >>> [line.get_ydata().tolist() for line in figure.axes[0].lines[:2]]
        [[0.75, 0.5], [0.25, 0.5]]
    """
    names = named(names, len(sizes))
    estimates = [estimate for estimate in history if estimate.quota is not None]
    pairs = [kept_of("quota", e.quota, sizes, repeat) for e in estimates if e.quota is not None]
    classes = (sizes.cpu() > 0).nonzero().squeeze(1)
    with paper(narrow) as sheet:
        if not pairs or not len(classes):
            sheet.text("No quotas were set." if not pairs else "No class has samples.")
            return sheet.finish()
        share = torch.stack([quota / size for quota, size in pairs])
        whole = torch.stack([quota.sum() / size.sum() for quota, size in pairs])
        _draw_quotas(sheet, [e.epoch for e in estimates], share, whole, classes, names)
        sheet.text(left_out(len(sizes) - len(classes)))
        return sheet.finish()


def _check(runs: Mapping[str, Sequence[Sequence[Evaluation]]]) -> None:
    if not runs:
        raise ValueError("`runs` must hold at least one label, got none.")
    for label, seeds in runs.items():
        if not seeds or not all(seeds):
            raise ValueError(
                f"`runs` must hold at least one evaluation of each seed, got none for {label!r}."
            )
        for seed in seeds:
            data = sorted({evaluation.name for evaluation in seed})
            if len(data) > 1:
                raise ValueError(
                    f"`runs` must hold evaluations of one data set, got {', '.join(data)} for "
                    f"{label!r}: choose with `RecallHistory.of`."
                )


def _turns(seeds: Sequence[Sequence[Evaluation]]) -> set[int]:
    """Returns the epochs of the first evaluations after pruning."""
    first = [next((e for e in seed if e.pruned), seed[0]) for seed in seeds]
    return {e.epoch for e, seed in zip(first, seeds, strict=True) if e is not seed[0]}


def _draw_runs(
    axis: Any, seeds: Sequence[Sequence[Evaluation]], what: str, style: Mapping[str, Any]
) -> None:
    # The last evaluation of an epoch stays.
    of_seed = [{e.epoch: float(getattr(e.counts, what)) for e in seed} for seed in seeds]
    epochs = sorted(set().union(*of_seed))
    values = torch.tensor([[seed.get(epoch, torch.nan) for epoch in epochs] for seed in of_seed])
    draw(axis, epochs, values, style)


def _draw_quotas(
    sheet: Sheet,
    epochs: list[int],
    share: Tensor,
    whole: Tensor,
    classes: Tensor,
    names: Sequence[str],
) -> None:
    from matplotlib.collections import LineCollection
    from matplotlib.lines import Line2D

    average: dict[str, Any] = {**DASHED, "color": DARK, "linewidth": 1.2, "zorder": 4}
    order = classes[share[-1][classes].argsort(stable=True)]
    many = len(order) > MOST_LINES
    chosen = torch.cat([order[:EXTREMES], order[-EXTREMES:]]) if many else order
    entries = [Line2D([], [], label="all classes together", **average)]
    if many:
        others = len(order) - len(chosen)
        entries.append(Line2D([], [], label=f"{others:,} more classes", color=PALE, linewidth=1))
    sheet.legend(entries)
    labels = [sheet.wrap(names[k], sheet.room, most=1) for k in chosen.tolist()]
    right = max(sheet.measure(label) for label in labels) + 0.4
    (axis,) = sheet.axes(3.2, right=right, above=["share that is kept"])
    looks = {k: style(i) for i, k in enumerate(sorted(chosen.tolist()))}
    for k, look in looks.items():
        axis.plot(epochs, share[:, k].tolist(), zorder=3, **look, **marker(len(epochs)))
    if many:
        x = torch.tensor(epochs, dtype=torch.float64)
        rest = share[:, order[EXTREMES:-EXTREMES]]
        lines = [torch.stack([x, line], 1).numpy() for line in rest.T]
        axis.add_collection(LineCollection(lines, colors=PALE, linewidths=0.8, zorder=1))
    axis.plot(epochs, whole.tolist(), **average)
    room_beside = max(0.03 * (epochs[-1] - epochs[0]), 0.1)
    axis.set_xlim(epochs[0] - room_beside, epochs[-1] + room_beside)
    axis.set_ylim(*limits(share[:, classes]))
    axis.grid(axis="y", **GRID)
    _whole_epochs(axis)
    colours = [looks[k]["color"] for k in chosen.tolist()]
    _names_beside(sheet, axis, epochs[-1], share[-1][chosen].tolist(), labels, colours)
    sheet.below([axis], "epoch of the estimate")


def _names_beside(
    sheet: Sheet,
    axis: Any,
    epoch: int,
    ends: Sequence[float],
    labels: list[str],
    colours: list[str],
) -> None:
    """Writes labels to the right of the ends of the lines, from low to high, moved apart."""
    width, height = sheet.size_of(axis)
    low, high = axis.get_ylim()
    heights = [(end - low) / (high - low) * height for end in ends]
    places = apart(heights, LINE, height)
    style: dict[str, Any] = {"va": "center", "color": DARK, "fontsize": FONT}
    for label, colour, end, place in zip(labels, colours, heights, places, strict=True):
        axis.annotate(
            label,
            (epoch, low + end / height * (high - low)),
            (1 + 0.25 / width, place / height),
            textcoords="axes fraction",
            arrowprops={**LINK, "color": colour},
            annotation_clip=False,
            **style,
        )


def apart(places: Sequence[float], distance: float, most: float) -> list[float]:
    """Returns ascending places, moved to be `distance` apart and in [0, most] if possible."""
    found: list[float] = []
    for place in places:
        found.append(max(place, found[-1] + distance if found else 0.0))
    for i in reversed(range(len(found))):
        found[i] = min(found[i], most)
        most = found[i] - distance
    return found


def _whole_epochs(axis: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, min_n_ticks=1))
