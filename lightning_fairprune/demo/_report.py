"""The files of the demonstration: a table, all numbers and a figure."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.table import Table
from torch import Tensor

from lightning_fairprune._files import write_whole
from lightning_fairprune.demo._digits import NUM_CLASSES, load
from lightning_fairprune.demo._runs import Record

BLUE, VERMILION = "#0072B2", "#D55E00"  # of Okabe and Ito, distinct for colour-blind readers
# Columns, by heading the attribute of the class counts.
MEASURES = {"average": "mean", "worst": "worst", "gap": "gap", "std": "std"}
COLUMNS = ("method", *MEASURES, "samples seen", "seconds")


def rows(records: Sequence[Record]) -> list[tuple[str, ...]]:
    """Returns a row for each method: mean over the seeds, lowest and highest in brackets."""
    table = []
    for method, of_method in grouped(records).items():
        values = ([float(getattr(r.counts, m)) for r in of_method] for m in MEASURES.values())
        recalls = map(_spread, values)
        seen = {record.samples_seen for record in of_method}
        seconds = sum(record.seconds for record in of_method) / len(of_method)
        seen_text = " to ".join(f"{count:,}" for count in sorted({min(seen), max(seen)}))
        table.append((method, *recalls, seen_text, f"{seconds:.1f}"))
    return table


def grouped(records: Sequence[Record]) -> dict[str, list[Record]]:
    methods = dict.fromkeys(record.method for record in records)
    return {name: [record for record in records if record.method == name] for name in methods}


def terminal_table(records: Sequence[Record]) -> Table:
    table = Table(
        title="Recall of the ten digits on test images",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
    )
    for name in COLUMNS:
        heading = name.replace(" ", "\n")
        table.add_column(heading, justify="left" if name == "method" else "right", no_wrap=True)
    for method, *cells in rows(records):
        # The range below the mean: it fits into 80 columns.
        lines = [cell.replace("0.", ".").rstrip(")").split(" (") for cell in cells]
        table.add_row(method, *("\n[dim]".join(line) for line in lines))
    return table


def write(records: Sequence[Record], out: str | os.PathLike[str]) -> list[Path]:
    """Writes `table.md`, `runs.csv` and `classes.png`.

    Args:
        records: of :func:`~lightning_fairprune.demo.run`.
        out: folder for the files, which is made if needed; files in it are replaced.

    Returns:
        The files.

    Raises:
        ValueError: If there are no records.
    """
    if not records:
        raise ValueError("`records` must hold at least one run, got none.")
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    png = io.BytesIO()
    figure(records).savefig(png, format="png", dpi=150)
    contents = {"table.md": _markdown(records).encode(), "runs.csv": _csv(records).encode()}
    contents["classes.png"] = png.getvalue()
    for name, content in contents.items():
        write_whole(folder / name, partial(Path.write_bytes, data=content))
    return [folder / name for name in contents]


def figure(records: Sequence[Record]) -> Any:
    """Returns a figure with a column per method, kept counts above and recalls below."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    methods = grouped(records)
    order = load()[2]
    chart = Figure(figsize=(max(5.8, 1.1 + 2.6 * len(methods)), 5.8), layout="constrained")
    FigureCanvasAgg(chart)
    axes = chart.subplots(2, len(methods), sharex=True, sharey="row", squeeze=False)
    lowest = 1.0
    for (top, bottom), (method, of_method) in zip(axes.T, methods.items(), strict=True):
        top.set_title(method, fontsize=12, fontweight="bold")
        _draw_kept(top, of_method, order)
        lowest = min(lowest, _draw_recall(bottom, of_method, order))
    axes[0, 0].set_ylabel("training images")
    axes[0, 0].set_ylim(0, 1.14 * float(records[0].sizes.max()))
    axes[1, 0].set_ylabel("recall on test images")
    # Room below the lowest dot for the numbers.
    axes[1, 0].set_ylim(max(0.0, lowest - 0.28 * (1 - lowest)), 1.02)
    axes[0, 0].legend(loc="upper right", bbox_to_anchor=(1.0, 0.88), frameon=False, fontsize=9)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="#E6E6E6", linewidth=0.8)
        axis.set_axisbelow(True)
        axis.set_xticks(range(NUM_CLASSES), [str(int(k)) for k in order])
        axis.tick_params(axis="x", length=0)
    seeds = len(next(iter(methods.values())))
    over = f"mean of {seeds} seeds, lines from lowest to highest" if seeds > 1 else "one seed"
    label = "digit, from the easiest and most frequent to the hardest and rarest\n"
    chart.supxlabel(f"{label}{over}; dashed: average over the digits", fontsize=10)
    return chart


def _draw_kept(axis: Any, of_method: Sequence[Record], order: Tensor) -> None:
    sizes = of_method[0].sizes[order]
    kept = torch.stack([record.kept for record in of_method]).double().mean(0)[order]
    places = range(NUM_CLASSES)
    axis.bar(places, sizes.tolist(), width=0.8, color="#E3E3E3", label="available")
    axis.bar(places, kept.tolist(), width=0.8, color=BLUE, label="kept at the end")
    share = f"{round(float(kept.sum()))} of {int(sizes.sum())} kept"
    axis.text(0.97, 0.97, share, transform=axis.transAxes, ha="right", va="top", color="#333333")


def _draw_recall(axis: Any, of_method: Sequence[Record], order: Tensor) -> float:
    """Draws the recalls and returns the lowest."""
    recall = torch.stack([record.counts.recall for record in of_method])[:, order]
    low, mean, high = recall.min(0).values, recall.mean(0), recall.max(0).values
    weakest = int(mean.argmin())
    average = float(recall.mean())
    axis.axhline(average, color="#555555", linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    for place in range(NUM_CLASSES):
        colour, marker = (VERMILION, "D") if place == weakest else (BLUE, "o")
        axis.vlines(place, float(low[place]), float(high[place]), color=colour, linewidth=2)
        axis.plot(place, float(mean[place]), marker=marker, color=colour, markersize=6)
    worst = sum(record.counts.worst for record in of_method) / len(of_method)
    axis.text(0.03, 0.09, f"average {average:.3f}", transform=axis.transAxes, color="#333333")
    axis.text(0.03, 0.02, f"worst class {worst:.3f}", transform=axis.transAxes, color=VERMILION)
    return float(low.min())


def _spread(values: Sequence[float]) -> str:
    mean = f"{sum(values) / len(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.3f}-{max(values):.3f})"


def _markdown(records: Sequence[Record]) -> str:
    lines = [COLUMNS, ("---", *["---:"] * (len(COLUMNS) - 1)), *rows(records)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _csv(records: Sequence[Record]) -> str:
    """Returns one line per run, with kept counts and recall of every class."""
    text = io.StringIO()
    classes = range(NUM_CLASSES)
    names = ["method", "seed", *MEASURES, "samples_seen", "seconds"]
    names += [f"kept_{k}" for k in classes] + [f"recall_{k}" for k in classes]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for record in records:
        values = [getattr(record.counts, name) for name in MEASURES.values()]
        shares = [f"{float(value):.4f}" for value in [*values, *record.counts.recall]]
        line = [record.method, record.seed, *shares[: len(values)], record.samples_seen]
        line += [f"{record.seconds:.2f}", *record.kept.tolist(), *shares[len(values) :]]
        writer.writerow(line)
    return text.getvalue()
