"""The tables as text, for every medium."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_fairprune import recalls
from lightning_fairprune.figures.words import in_percent
from lightning_fairprune.report._compare import Comparison, Setting, measures
from lightning_fairprune.report._offsets import OffsetsGain
from lightning_fairprune.report._settings import configuration, differences, shown
from lightning_fairprune.report._similarity import LayerSimilarity
from lightning_fairprune.report._sparsity import SparsityCurve
from lightning_fairprune.report._words import NOTHING, amount, marks, points, ratio, signed
from lightning_fairprune.statistics import Summary, half_widths, summarise

Write = Callable[[float], str]


class Cell(NamedTuple):
    """A text, a second one in small print, and the class of its style."""

    text: str
    small: str = ""
    kind: str = ""


class Table(NamedTuple):
    """A table with row names in the first column and a caption for screen readers; columns in `text` align left."""

    caption: str
    head: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]
    text: Sequence[str] = ()


class Measure(NamedTuple):
    """A column: its name in `Setting.values`, its heading, and its format."""

    name: str
    heading: str
    write: Callable[[float], str]


MEASURES = (
    Measure("average", "average", points),
    Measure("worst", "worst", points),
    Measure("gap", "gap", points),
    Measure("std", "std", points),
    Measure("alpha", "α", ratio),
    Measure("disparity", "max disparity", points),
    Measure("zero_recall", "classes at 0", amount),
    Measure("density", "density", points),
    Measure("sparsity", "sparsity", lambda v: NOTHING if v != v else in_percent(v)),
)


class Row(NamedTuple):
    """One setting, or the reference: its number of runs, weakest class, and summaries by measure.

    `alpha_label` is ">", "<" or "?", or "" without an interval. The reference lacks some measures.
    """

    label: str
    runs: int
    weakest: str
    summaries: Mapping[str, Summary]
    alpha_label: str = ""
    is_reference: bool = False

    def cell(self, measure: Measure) -> Cell:
        """Returns the mean and half the width of its interval, if it has one."""
        found = self.summaries.get(measure.name)
        if found is None:
            return Cell(measure.write(float("nan")))
        reach = (found.high - found.low) / 2
        mean = measure.write(found.mean)
        if measure.name == "alpha" and self.alpha_label:
            mean += f" {self.alpha_label}"
        # No t interval for counts of classes and for arguments of the runs.
        plain = reach != reach or measure.name in ("zero_recall", "density", "sparsity")
        return Cell(mean, "" if plain else f"±{measure.write(reach)}")


def rows(comparison: Comparison) -> list[Row]:
    """Returns the reference, if any, and all settings."""
    found = []
    names = comparison.class_names
    if comparison.reference is not None:
        recall = comparison.reference.recall
        weakest = names[int(recall.nanmean(0).nan_to_num(torch.inf).argmin())]
        alone = ("average", "worst", "gap", "std", "zero_recall")
        values = measures(recall, None)
        own = {name: summarise(values[name], comparison.level) for name in alone}
        found.append(Row("reference", len(recall), weakest, own, is_reference=True))
    for setting in comparison.settings:
        # One run has no interval.
        told = setting.before is not None and setting.summaries["alpha"].num_models > 1
        label = setting.alpha_label if told else ""
        weakest = names[setting.weakest]
        found.append(Row(setting.label, len(setting.runs), weakest, setting.summaries, label))
    return found


def settings_table(comparison: Comparison, shown: Sequence[str] = ()) -> Table:
    """Returns some measures of each setting, by default all, but sparsity only if a run has one."""
    sparse = any(run.sparsity is not None for run in comparison.runs)
    some = [m for m in MEASURES if (m.name in shown if shown else sparse or m.name != "sparsity")]
    head = ["setting", "runs", *(m.heading for m in some), "worst class"]
    lines = [
        (row.label, [Cell(str(row.runs)), *map(row.cell, some), Cell(row.weakest)])
        for row in rows(comparison)
    ]
    return Table("Settings", head, lines, ["worst class"])


def class_table(comparison: Comparison, setting: Setting) -> Table:
    """Returns the recalls of each class, before and after, and its samples."""
    before, after, level = setting.mean_before, setting.mean, comparison.level
    compared, marked = setting.before is not None, marks(setting)
    columns = {"before": _column(points, before)} if compared else {}
    columns["after" if compared else "recall"] = _means(points, setting.recall, level)
    if compared:
        adjusted = recalls.adjusted_change(after, before).tolist()
        said = [marked.get(k, "") for k in range(len(after))]
        # Of the means: ratios of small differences vary too much to be averaged over runs.
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


def first_classes(comparison: Comparison, setting: Setting, most: int) -> list[dict[str, str]]:
    """Returns the classes with the largest losses, a text by heading."""
    before, after, change = setting.mean_before, setting.mean, setting.change.nanmean(0)
    marked = marks(setting)
    return [
        {
            "class": comparison.class_names[k],
            "before": points(float(before[k])),
            "after": points(float(after[k])),
            "change": signed(float(change[k])),
            "density": points(float(setting.density[k])),
            "significant": marked.get(k, NOTHING),
        }
        for k in setting.order[:most].tolist()
    ]


def sparsity_table(comparison: Comparison, curve: SparsityCurve) -> Table:
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
    columns = [_means(ratio, runs, comparison.level) for runs in found.values.values()]
    lines = list(zip(found.layers, zip(*columns, strict=True), strict=True))
    return Table(f"{found.measure} of each layer", ["layer", *found.values], lines)


def offsets_table(comparison: Comparison, found: Sequence[OffsetsGain]) -> Table:
    lines = [(one.label, _means(points, one.values, comparison.level)) for one in found]
    head = ["setting", "worst", "worst with offsets", "average", "average with offsets"]
    return Table("Recalls with and without offsets", [*head, "threshold", "representation"], lines)


def difference_table(comparison: Comparison) -> Table:
    known = [configuration(setting.runs[0]) for setting in comparison.settings]
    lines = [(key, [Cell(shown(c.get(key, NOTHING))) for c in known]) for key in differences(known)]
    head = ["differs", *(setting.label for setting in comparison.settings)]
    return Table("Settings that differ", head, lines, head)


def _column(write: Write, values: Tensor) -> list[Cell]:
    return [Cell(write(value)) for value in values.tolist()]


def _means(write: Write, values: Tensor, level: float) -> list[Cell]:
    """Returns the means of [M, n] over the runs, with half of their intervals in small print."""
    reach = ratio if write is ratio else points
    widths = half_widths(values, level).tolist()
    return [
        Cell(write(mean), "" if width != width else f"±{reach(width)}")
        for mean, width in zip(values.nanmean(0).tolist(), widths, strict=True)
    ]


def _whole(value: float) -> str:
    return NOTHING if value != value else f"{value:,.0f}"
