"""Recalls against density, and against sparsity with the intensification ratio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_fairprune.experiments._results import ByLevel, Row, by_density, by_sparsity, ratio

# Colours of Okabe and Ito, for colour-blind readers; with more methods markers distinguish them.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#999999")
MARKERS = "osD^vPX"
DARK = "#222222"
WIDTH = 0.45  # of the range of the methods around one density
ALPHAS = (-100, -10, -2, -1, 0, 0.5, 1, 1.5, 2, 5, 10, 100)
TITLES = {"average": "average recall", "worst": "recall of the worst class"}


def curves(rows: Sequence[Row]) -> Any:
    """Returns a figure: mean recalls of each method against density, with bars from lowest to highest seed."""
    by_level = by_density(rows)
    across = {name: seeds for (name, density), seeds in by_level.items() if density == 1}
    densities = sorted({density for _, density in by_level if density < 1}, reverse=True)
    ticks = {density: f"{density:g}" for density in densities}
    return _draw(by_level, across, ticks, TITLES, "density")


def sparsity_curves(rows: Sequence[Row]) -> Any:
    """Returns a figure: intensification ratio and mean recalls of each method against sparsity.

    The line across is the first method whose weights were not pruned.
    """
    by_level = by_sparsity(rows)
    dense = [row for row in rows if not row.sparsity]
    across = {dense[0].method: [row for row in dense if row.method == dense[0].method]}
    sparsities = sorted({sparsity for _, sparsity in by_level})
    ticks = {sparsity: f"{sparsity:g}\n({ratio(sparsity):.3g})" for sparsity in sparsities}
    titles = {"alpha": "intensification ratio alpha"} | TITLES
    return _draw(by_level, across, ticks, titles, "sparsity (ratio)")


def _draw(
    rows: ByLevel,
    across: Mapping[str, Sequence[Row]],
    ticks: Mapping[float, str],
    titles: Mapping[str, str],
    label: str,
) -> Any:
    """Draws a panel for each measure, with the rows of `across` as horizontal lines."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    chart = Figure(figsize=(1.9 + 4.3 * len(titles), 4.4), layout="constrained")
    FigureCanvasAgg(chart)
    axes = chart.subplots(1, len(titles))
    levels = list(ticks)
    lines = list(dict.fromkeys(name for name, level in rows if level in ticks))
    for axis, (measure, title) in zip(axes, titles.items(), strict=True):
        for i, (name, seeds) in enumerate(across.items()):
            if measure == "alpha":
                axis.axhline(1, color=DARK, label=name)
                continue
            mean, low, high = _range(_values(seeds, measure))
            axis.axhline(mean, color=DARK, linestyle=("-", "--", ":")[i % 3], label=name)
            axis.axhspan(low, high, color=DARK, alpha=0.06, linewidth=0)
        for i, name in enumerate(lines):
            known = {x: _values(rows.get((name, x), ()), measure) for x in levels}
            known = {x: values for x, values in known.items() if values}
            if not known:
                continue
            ranges = [_range(values) for values in known.values()]
            means, lows, highs = (list(side) for side in zip(*ranges, strict=True))
            # Side by side, so that their ranges do not overlap.
            shift = WIDTH * ((i + 0.5) / len(lines) - 0.5)
            places = [levels.index(x) + shift for x in known]
            colour = COLOURS[i % len(COLOURS)]
            axis.vlines(places, lows, highs, color=colour, linewidth=2, alpha=0.45)
            axis.plot(
                places, means, MARKERS[i % len(MARKERS)], color=colour, label=name, markersize=6
            )
            axis.plot(places, means, color=colour, linewidth=0.8, alpha=0.5)
        if measure == "alpha":  # near 1 for most, and far from it where a class is lost
            axis.set_yscale("symlog", linthresh=2, linscale=2)
            shown = [alpha for alpha in ALPHAS if axis.get_ylim()[0] <= alpha <= axis.get_ylim()[1]]
            axis.set_yticks(shown, [f"{alpha:g}" for alpha in shown])
            axis.set_yticks([], minor=True)
        axis.set_title(title, fontsize=11)
        axis.set_xticks(range(len(levels)), list(ticks.values()))
        axis.set_xlim(-0.5, len(levels) - 0.5)
        axis.set_xlabel(label)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="#E6E6E6", linewidth=0.8)
        axis.set_axisbelow(True)
    handles, labels = axes[-1].get_legend_handles_labels()
    chart.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=9)
    return chart


def _values(rows: Sequence[Row], measure: str) -> list[float]:
    found = (getattr(row, measure) for row in rows)
    return [float(value) for value in found if value is not None]


def _range(values: Sequence[float]) -> tuple[float, float, float]:
    return sum(values) / len(values), min(values), max(values)
