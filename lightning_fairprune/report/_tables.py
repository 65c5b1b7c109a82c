"""The tables of the page: what is in each cell, not how it looks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from lightning_fairprune import recalls, statistics
from lightning_fairprune.figures._compression import in_percent
from lightning_fairprune.report._compare import Comparison, Setting, measures
from lightning_fairprune.report._rows import measured, rows
from lightning_fairprune.report._settings import configuration, differences, shown
from lightning_fairprune.report._similarity import LayerSimilarity
from lightning_fairprune.report._sparsity import SparsityCurve
from lightning_fairprune.report._words import NOTHING, marks, points, ratio, signed

Write = Callable[[float], str]


class Cell(NamedTuple):
    """A text, a second one in small print below it, and the class of its style."""

    text: str
    small: str = ""
    kind: str = ""


class Table(NamedTuple):
    """A table whose first column names its rows.

    Args:
        caption: what it is, for those who hear the page.
        head: headings of the columns.
        rows: the name of each row and its other cells.
        text: headings of columns with text, which is not set to the right.
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]
    text: Sequence[str] = ()


def settings_table(comparison: Comparison) -> Table:
    """Returns the measures of each setting."""
    told = measured(comparison)
    head = ["setting", "runs", *(m.heading for m in told), "worst class"]
    lines = [
        (r.label, [Cell(str(r.runs)), *(Cell(*r.cell(m)) for m in told), Cell(r.weakest)])
        for r in rows(comparison)
    ]
    return Table("Settings", head, lines, ["worst class"])


def class_table(comparison: Comparison, setting: Setting) -> Table:
    """Returns the recalls of each class, before and after, and how many samples were kept."""
    before, after, level = setting.mean_before, setting.mean, comparison.level
    compared, marked = setting.before is not None, marks(setting)
    columns = {"before": _column(points, before)} if compared else {}
    columns["after" if compared else "recall"] = _means(points, setting.recall, level)
    if compared:
        adjusted = recalls.adjusted_change(after, before).tolist()
        said = [marked.get(k, "") for k in range(len(after))]
        # Of the means: a ratio of two small differences scatters too much to be averaged over runs.
        columns |= {
            "change": _means(signed, setting.change, level),
            "retention": _column(points, recalls.retention(after, before)),
            "adjusted": [Cell(signed(v), s, s) for v, s in zip(adjusted, said, strict=True)],
            "I": _column(ratio, recalls.class_intensification(after, before)),
        }
    columns["samples"] = _column(_whole, setting.support.double().mean(0))
    if bool((~setting.sizes.isnan()).any()):
        columns["size"] = _column(_whole, setting.sizes.nanmean(0))
        columns["kept"] = _column(_whole, setting.kept.nanmean(0))
        columns["density"] = _column(points, setting.density)
    lines = [
        (comparison.class_names[k], [cells[k] for cells in columns.values()])
        for k in setting.order.tolist()
    ]
    return Table(f"Classes with {setting.label}", ["class", *columns], lines)


def sparsity_table(comparison: Comparison, curve: SparsityCurve) -> Table:
    """Returns the recalls at each sparsity."""
    shown = {"worst": points, "average": points, "gap": points}
    shown |= {"alpha": ratio} if curve.whose else {}
    lines = []
    for sparsity, recall in curve.recall.items():
        values = measures(recall, curve.before)
        runs = int((~values["worst"].isnan()).sum())
        size = f"{1 / (1 - sparsity):,.4g}×" if sparsity < 1 else NOTHING
        cells = [Cell(size), Cell(str(runs))]
        for name, write in shown.items():
            cells += _means(write, values[name][:, None], comparison.level)
        lines.append((f"{in_percent(sparsity)} %", cells))
    head = ["sparsity", "compression", "runs", *("α" if n == "alpha" else n for n in shown)]
    return Table(f"Sparsity of {curve.label}", head, lines)


def similarity_table(comparison: Comparison, found: LayerSimilarity) -> Table:
    """Returns the similarity of each layer, a column for each setting that was compared."""
    columns = [_means(ratio, runs, comparison.level) for runs in found.values.values()]
    lines = list(zip(found.layers, zip(*columns, strict=True), strict=True))
    return Table(f"{found.measure} of each layer", ["layer", *found.values], lines)


def difference_table(comparison: Comparison) -> Table:
    """Returns what differs between the configurations of the settings."""
    known = [configuration(setting.runs[0]) for setting in comparison.settings]
    lines = [(key, [Cell(shown(c.get(key, NOTHING))) for c in known]) for key in differences(known)]
    head = ["differs", *(setting.label for setting in comparison.settings)]
    return Table("Settings that differ", head, lines, head)


def _column(write: Write, values: Tensor) -> list[Cell]:
    return [Cell(write(value)) for value in values.tolist()]


def _means(write: Write, values: Tensor, level: float) -> list[Cell]:
    """Returns the mean of each column of [M, n] over the runs, half of its interval in small print."""
    reach = ratio if write is ratio else points
    widths = statistics.half_widths(values, level).tolist()
    return [
        Cell(write(mean), "" if width != width else f"±{reach(width)}")
        for mean, width in zip(values.nanmean(0).tolist(), widths, strict=True)
    ]


def _whole(value: float) -> str:
    return NOTHING if value != value else f"{value:,.0f}"
