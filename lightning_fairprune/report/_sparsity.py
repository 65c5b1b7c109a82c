"""What a growing sparsity cost the classes: the section on runs whose weights were pruned."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from lightning_fairprune import figures, statistics
from lightning_fairprune.counts import ClassCounts
from lightning_fairprune.figures._compression import in_percent
from lightning_fairprune.report._compare import Comparison, measures
from lightning_fairprune.report._draw import Picture, Plan
from lightning_fairprune.report._html import cell, details, figure, paragraph, table
from lightning_fairprune.report._read import Run
from lightning_fairprune.report._words import NOTHING, listed, percent, points, ratio

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CURVE, LAYERS = "sparsity", "layer_sparsity"
MANY = 15  # sparsities, above which the table scrolls in its box
COLUMNS = {"worst": points, "average": points, "gap": points, "alpha": ratio}

# By sparsity, the last evaluation at it.
Levels = dict[float, ClassCounts]


class Found(NamedTuple):
    """The runs of one setting whose sparsity is known.

    Attributes:
        group: position of the setting.
        label: what it is called.
        runs: its M runs that were evaluated with weights removed.
        recall: of each of them at each sparsity, the lowest first, [M, K]; NaN where a run lacks it.
        before: what each is compared with, [M, K]; None if there is nothing.
        whose: what that is, in words.
    """

    group: int
    label: str
    runs: tuple[Run, ...]
    recall: dict[float, Tensor]
    before: Tensor | None
    whose: str


def plans(comparison: Comparison) -> list[Plan]:
    """Returns the figures of the section: sparsity against recalls, and the layers of each setting."""
    found = collected(comparison)
    # A network without weights has no compression ratio.
    recall = {one.label: {s: r for s, r in one.recall.items() if s < 1} for one in found}
    recall = {label: curve for label, curve in recall.items() if curve}
    before = {
        one.label: one.before for one in found if one.before is not None and one.label in recall
    }
    plans = []
    if recall:
        alt = (
            f"Lowest and average recall on {_data(comparison)}{' and α' if before else ''} against sparsity, "
            "a line for each setting."
        )
        draw = _curve(recall, before)
        plans.append(Plan(CURVE, None, CURVE, alt, _caption(comparison, found), draw))
    for one in found:
        layers, total = _layers(one.runs)
        if layers:
            alt = f"Sparsity of each layer with {one.label} after the last pruning."
            caption = "Mean over the runs." if len(one.runs) > 1 else ""
            name = f"{LAYERS}_{one.group + 1}"
            plans.append(Plan(LAYERS, one.group, name, alt, caption, _bars(layers, total)))
    return plans


def section(comparison: Comparison, pictures: Sequence[Picture]) -> str:
    """Returns the section as HTML; nothing if no run has a known sparsity."""
    found = collected(comparison)
    if not found:
        return ""
    parts = [
        paragraph(
            "Sparsity is the share of the weights that are removed, of those that may be; the compression ratio is "
            "1 / (1 - sparsity). Each point is the last evaluation before more weights were removed, with the "
            "training that followed the pruning. One run goes through all sparsities of its line, so the network "
            "of a low sparsity was trained for a shorter time than that of a high one.",
            "soft",
        )
    ]
    parts += [figure(picture) for picture in pictures if picture.plan.section == CURVE]
    for one in found:
        parts.append(f"<h3>{escape(one.label)}</h3>\n")
        parts.append(_table(comparison, one))
        whole = len(comparison.groups[one.group].runs)
        if len(one.runs) < whole:
            text = f"{len(one.runs)} of {whole} runs; of the others no sparsity is known."
            parts.append(paragraph(text, "soft"))
        layers = [
            figure(picture)
            for picture in pictures
            if picture.plan.section == LAYERS and picture.plan.group == one.group
        ]
        if layers:
            parts.append(details("Sparsity of each layer", "".join(layers)))
    return "".join(parts)


def collected(comparison: Comparison) -> list[Found]:
    """Returns, for each setting with weights removed, its recalls by sparsity."""
    data, found = _data(comparison), []
    for i, group in enumerate(comparison.groups):
        by_run = {run.path: by_sparsity(run, data) for run in group.runs}
        runs = tuple(run for run in group.runs if any(s > 0 for s in by_run[run.path]))
        if not runs:
            continue
        several = [by_run[run.path] for run in runs]
        any_level = next(iter(several[0].values()))
        nothing = torch.full_like(any_level.recall, torch.nan)
        recall = {
            s: torch.stack([levels[s].recall if s in levels else nothing for levels in several])
            for s in sorted(set().union(*several))
        }
        before, whose = _before(comparison, runs, several, data)
        found.append(Found(i, group.label, runs, recall, before, whose))
    return found


def by_sparsity(run: Run, data: str) -> Levels:
    """Returns the last evaluation at each sparsity that a run went through.

    Evaluations after a fit are left out where there are some during it: they may be of a checkpoint
    from before.
    """
    if run.sparsity is None:
        return {}
    every = run.history.of(data)
    during = [evaluation for evaluation in every if evaluation.epoch > 0]
    return {run.sparsity.at(e.step): e.counts for e in during or every}


def _data(comparison: Comparison) -> str:
    return comparison.curves or comparison.data


def _before(
    comparison: Comparison, runs: Sequence[Run], several: Sequence[Levels], data: str
) -> tuple[Tensor | None, str]:
    """Returns what each run is compared with, [M, K], and what that is; one kind for all of them."""
    options: list[tuple[list[list[ClassCounts]], str]] = []
    if comparison.reference is not None and comparison.reference.runs:
        others = [run for run in comparison.reference.runs if run.history.of(data)]
        last = [other.history.last(data).counts for other in others]
        pairs = list(zip(others, last, strict=True))
        partners = [
            [c for o, c in pairs if run.seed is not None and o.seed == run.seed] for run in runs
        ]
        if all(partners):
            options.append((partners, "the reference run of equal seed"))
        mean = "the mean of the reference runs" if len(last) > 1 else "the reference run"
        options.append(([last] * len(runs), mean))
    kept = [run.history.reference.get(data) for run in runs]
    options.append(([[c] if c else [] for c in kept], "the reference that each run has kept"))
    dense = [[levels[0.0]] if 0.0 in levels else [] for levels in several]
    options.append((dense, "the last evaluation of each run before pruning"))
    for found, whose in options:
        if all(found) and all(map(_same_data, found, several)):
            recalls = [torch.stack([c.recall for c in counts]).nanmean(0) for counts in found]
            return torch.stack(recalls), whose
    return None, ""


def _same_data(reference: Sequence[ClassCounts], levels: Levels) -> bool:
    one = next(iter(levels.values()))
    return all(
        c.num_classes == one.num_classes and one.first_other_support(c) is None for c in reference
    )


def _curve(
    recall: dict[str, dict[float, Tensor]], before: dict[str, Tensor]
) -> Callable[[bool], Figure]:
    return lambda narrow: figures.sparsity_curve(recall, before, narrow=narrow)


def _bars(layers: dict[str, float], total: float) -> Callable[[bool], Figure]:
    return lambda narrow: figures.layer_sparsity(layers, total=total, narrow=narrow)


def _caption(comparison: Comparison, found: Sequence[Found]) -> str:
    parts = [f"Evaluations of {_data(comparison)}."]
    ways = {one.whose for one in found if one.whose}
    for whose in dict.fromkeys(one.whose for one in found if one.whose):
        labels = [one.label for one in found if one.whose == whose]
        of = f" of {listed(labels)}" if len(ways) > 1 or len(labels) < len(found) else ""
        parts.append(f"α{of} and dashed: relative to {whose}.")
    return " ".join(parts)


def _layers(runs: Sequence[Run]) -> tuple[dict[str, float], float]:
    """Returns the sparsity of each layer after the last pruning and that of all, means over the runs."""
    last = [run.sparsity.steps[-1] for run in runs if run.sparsity is not None]
    names = list(dict.fromkeys(name for step in last for name in step.layers))
    rows = [[step.layers.get(name, math.nan) for name in names] for step in last]
    values = torch.tensor(rows, dtype=torch.float64).nanmean(0).tolist()
    layers = {n: value for n, value in zip(names, values, strict=True) if value == value}
    return layers, sum(step.total for step in last) / len(last)


def _table(comparison: Comparison, one: Found) -> str:
    shown = {name: write for name, write in COLUMNS.items() if name != "alpha" or one.whose}
    lines = []
    for sparsity, recall in one.recall.items():
        values = measures(recall, one.before)
        runs = int((~values["worst"].isnan()).sum())
        size = f"{1 / (1 - sparsity):,.4g}×" if sparsity < 1 else NOTHING
        cells = [cell(size), cell(str(runs))]
        for name, write in shown.items():
            mean = float(values[name].nanmean())
            width = float(statistics.half_widths(values[name], comparison.level))
            cells.append(cell(write(mean), f"±{write(width)}" if width == width else ""))
        lines.append((f"{in_percent(sparsity)} %", cells))
    head = ["sparsity", "compression", "runs", *("α" if n == "alpha" else n for n in shown)]
    spread = (
        f", mean over the runs; small: half of the {percent(comparison.level)} t interval"
        if len(one.runs) > 1
        else ""
    )
    against = (
        f" α is relative to {one.whose}." if one.whose else " There is nothing to compare with."
    )
    caption = f"Recalls on {_data(comparison)} in percent{spread}.{against}"
    many = "tall" if len(lines) > MANY else ""
    return table(f"Sparsity of {one.label}", head, lines, many) + paragraph(caption, "soft")
