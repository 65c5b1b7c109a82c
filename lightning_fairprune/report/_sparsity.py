"""Recalls against sparsity, of runs with pruned weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_fairprune import figures
from lightning_fairprune.counts import ClassCounts
from lightning_fairprune.figures.words import listed
from lightning_fairprune.report._compare import Comparison
from lightning_fairprune.report._draw import Drawing
from lightning_fairprune.report._read import Run

CURVE, LAYERS = "sparsity", "layer_sparsity"

# The last evaluation at each sparsity.
Levels = dict[float, ClassCounts]


class SparsityCurve(NamedTuple):
    """The runs of one setting with removed weights.

    Attributes:
        setting: its position.
        label: its name.
        runs: its M runs that were evaluated with weights removed.
        recall: by sparsity, the lowest first, the recalls of the runs, [M, K]; NaN for a missing one.
        before: recalls of the reference of each run, [M, K], or None.
        whose: that reference, in words.
    """

    setting: int
    label: str
    runs: tuple[Run, ...]
    recall: dict[float, Tensor]
    before: Tensor | None
    whose: str


def drawings(comparison: Comparison) -> list[Drawing]:
    """Returns the figures: recalls against sparsity, and the layers of each setting."""
    curves = collected(comparison)
    # A network without weights has no compression ratio.
    recall = {one.label: {s: r for s, r in one.recall.items() if s < 1} for one in curves}
    recall = {label: curve for label, curve in recall.items() if curve}
    before = {
        one.label: one.before for one in curves if one.before is not None and one.label in recall
    }
    found = []
    if recall:
        alt = (
            f"Lowest and average recall on {_data(comparison)}{' and α' if before else ''} against sparsity, "
            "a line for each setting."
        )
        draw = partial(figures.sparsity_curve, recall, before)
        found.append(Drawing(CURVE, None, CURVE, alt, _caption(comparison, curves), draw))
    for one in curves:
        layers, total = _layers(one.runs)
        if layers:
            alt = f"Sparsity of each layer with {one.label} after the last pruning."
            caption = _of_all(one.runs)
            name = f"{LAYERS}_{one.setting + 1}"
            draw = partial(figures.layer_sparsity, layers, total=total)
            found.append(Drawing(LAYERS, one.setting, name, alt, caption, draw))
    return found


def collected(comparison: Comparison) -> list[SparsityCurve]:
    """Returns the curve of each setting with removed weights."""
    data, found = _data(comparison), []
    for i, setting in enumerate(comparison.settings):
        by_run = [(run, by_sparsity(run, data)) for run in setting.runs]
        pruned = [(run, levels) for run, levels in by_run if any(s > 0 for s in levels)]
        if not pruned:
            continue
        runs, several = tuple(run for run, _ in pruned), [levels for _, levels in pruned]
        nothing = torch.full_like(next(iter(several[0].values())).recall, torch.nan)
        recall = {
            s: torch.stack([levels[s].recall if s in levels else nothing for levels in several])
            for s in sorted(set().union(*several))
        }
        before, whose = _before(comparison, runs, several, data)
        found.append(SparsityCurve(i, setting.label, runs, recall, before, whose))
    return found


def by_sparsity(run: Run, data: str) -> Levels:
    """Returns the last evaluation of a run at each sparsity."""
    if run.sparsity is None:
        return {}
    every = run.history.of(data)
    # Evaluations after the fit may be of an earlier checkpoint.
    during = [evaluation for evaluation in every if evaluation.epoch > 0]
    return {run.sparsity.at(e.step): e.counts for e in during or every}


def _data(comparison: Comparison) -> str:
    return comparison.curves or comparison.data


def _before(
    comparison: Comparison, runs: Sequence[Run], several: Sequence[Levels], data: str
) -> tuple[Tensor | None, str]:
    """Returns the reference of each run, [M, K], and its kind in words, which is the same for all runs."""
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


def _caption(comparison: Comparison, curves: Sequence[SparsityCurve]) -> str:
    parts = [f"Evaluations of {_data(comparison)}."]
    ways = dict.fromkeys(one.whose for one in curves if one.whose)
    for whose in ways:
        labels = [one.label for one in curves if one.whose == whose]
        of = f" of {listed(labels)}" if len(ways) > 1 or len(labels) < len(curves) else ""
        parts.append(f"α{of} and dashed: relative to {whose}.")
    return " ".join(parts)


def _of_all(runs: Sequence[Run]) -> str:
    """Returns in words what the total is a fraction of, and that of all parameters if it was recorded."""
    last = [run.sparsity.steps[-1] for run in runs if run.sparsity is not None]
    parts = ["Mean over the runs."] if len(runs) > 1 else []
    known = [step.of_all for step in last if step.of_all is not None]
    if known and len(known) == len(last):
        share = 100 * sum(known) / len(known)
        parts.append(f"All layers that may be pruned; {share:.3g} % of all parameters are removed.")
    return " ".join(parts)


def _layers(runs: Sequence[Run]) -> tuple[dict[str, float], float]:
    """Returns the last sparsity of each layer and of all weights, means over the runs."""
    last = [run.sparsity.steps[-1] for run in runs if run.sparsity is not None]
    names = list(dict.fromkeys(name for step in last for name in step.layers))
    rows = [[step.layers.get(name, math.nan) for name in names] for step in last]
    values = torch.tensor(rows, dtype=torch.float64).nanmean(0).tolist()
    layers = {n: value for n, value in zip(names, values, strict=True) if value == value}
    return layers, sum(step.total for step in last) / len(last)
