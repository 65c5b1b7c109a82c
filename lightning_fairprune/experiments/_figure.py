"""Average and worst recall against density."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_fairprune.experiments._results import Row, by_setting

__all__ = ["curves"]

# Colours of Okabe and Ito, which colour-blind readers can tell apart; then markers tell on.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#999999")
MARKERS = "osD^vPX"
WIDTH = 0.45  # that the methods take beside each other at one density


def curves(rows: Sequence[Row]) -> Any:
    """Returns a matplotlib figure: means of each method against density, with bars from lowest to highest seed.

    Args:
        rows: of a whole experiment.

    Returns:
        The figure, with average recall on the left and that of the worst class on the right.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups = by_setting(rows)
    chart = Figure(figsize=(10.5, 4.4), layout="constrained")
    FigureCanvasAgg(chart)
    axes = chart.subplots(1, 2)
    densities = sorted({row.density for row in rows if row.density < 1}, reverse=True)
    names = list(dict.fromkeys(row.method for row in rows))
    across = [
        name for name in names if (name, 1.0) in groups
    ]  # all data: one density, a line across
    lines = [name for name in names if name not in across]
    titles = {"average": "average recall", "worst": "recall of the worst class"}
    for axis, (measure, title) in zip(axes, titles.items(), strict=True):
        for i, name in enumerate(across):
            mean, low, high = _range(groups[name, 1.0], measure)
            axis.axhline(mean, color="#222222", linestyle=("-", "--", ":")[i % 3], label=name)
            axis.axhspan(low, high, color="#222222", alpha=0.06, linewidth=0)
        for i, name in enumerate(lines):
            known = [d for d in densities if (name, d) in groups]
            values = [_range(groups[name, d], measure) for d in known]
            means, lows, highs = (list(side) for side in zip(*values, strict=True))
            # Beside each other, so that their ranges can be told apart.
            shift = WIDTH * ((i + 0.5) / len(lines) - 0.5)
            places = [densities.index(d) + shift for d in known]
            colour = COLOURS[i % len(COLOURS)]
            axis.vlines(places, lows, highs, color=colour, linewidth=2, alpha=0.45)
            axis.plot(
                places, means, MARKERS[i % len(MARKERS)], color=colour, label=name, markersize=6
            )
            axis.plot(places, means, color=colour, linewidth=0.8, alpha=0.5)
        axis.set_title(title, fontsize=11)
        axis.set_xticks(range(len(densities)), [f"{d:g}" for d in densities])
        axis.set_xlim(-0.5, len(densities) - 0.5)
        axis.set_xlabel("density")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="#E6E6E6", linewidth=0.8)
        axis.set_axisbelow(True)
    handles, labels = axes[0].get_legend_handles_labels()
    chart.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=9)
    return chart


def _range(group: Sequence[Row], measure: str) -> tuple[float, float, float]:
    values = [float(getattr(row, measure)) for row in group]
    return sum(values) / len(values), min(values), max(values)
