"""Average and worst recall against density."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_fairprune.experiments._results import Row, by_setting

__all__ = ["curves"]

# Colours of Okabe and Ito, which colour-blind readers can tell apart; then markers tell on.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#999999")
MARKERS = "osD^vP"


def curves(rows: Sequence[Row]) -> Any:
    """Returns a matplotlib figure: a line per method, from lowest to highest seed a band.

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
    titles = {"average": "average recall", "worst": "recall of the worst class"}
    for axis, (measure, title) in zip(axes, titles.items(), strict=True):
        for i, name in enumerate(names):
            colour = COLOURS[i % len(COLOURS)]
            # As the whole data has but one density, it is a line across.
            if (name, 1.0) in groups:
                mean, low, high = _range(groups[name, 1.0], measure)
                axis.axhline(mean, color="#222222", linestyle=("-", "--", ":")[i % 3], label=name)
                axis.axhspan(low, high, color="#222222", alpha=0.06, linewidth=0)
                continue
            known = [d for d in densities if (name, d) in groups]
            values = [_range(groups[name, d], measure) for d in known]
            places = [densities.index(d) for d in known]
            means, lows, highs = zip(*values, strict=True)
            marker = MARKERS[i % len(MARKERS)]
            axis.plot(places, means, marker=marker, color=colour, label=name, markersize=5)
            axis.fill_between(places, lows, highs, color=colour, alpha=0.12, linewidth=0)
        axis.set_title(title, fontsize=11)
        axis.set_xticks(range(len(densities)), [f"{d:g}" for d in densities])
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
