"""What the layers compute: the section on runs whose layers were compared with a dense network's."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_fairprune import figures, statistics
from lightning_fairprune.report._compare import Comparison
from lightning_fairprune.report._draw import Picture, Plan
from lightning_fairprune.report._html import cell, details, figure, paragraph, table
from lightning_fairprune.report._words import percent, ratio

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SECTION = "similarity"
MANY = 15  # layers, above which the table scrolls in its box

# By setting, the values of each of its M runs that was compared, [M, layers].
Found = dict[str, Tensor]


def plans(comparison: Comparison) -> list[Plan]:
    """Returns a figure for each measure that layers were compared by."""
    found = []
    measures = _measures(comparison)
    for i, measure in enumerate(measures):
        layers, values = _collected(comparison, measure)
        means = {
            label: dict(zip(layers, several.nanmean(0).tolist(), strict=True))
            for label, several in values.items()
        }
        name = SECTION if len(measures) == 1 else f"{SECTION}_{i + 1}"
        alt = f"{measure} of each layer with the same layer of the dense network, a line for each setting."
        caption = "Mean over the runs." if _several(values) else ""
        found.append(Plan(SECTION, None, name, alt, caption, _drawing(means, measure)))
    return found


def section(comparison: Comparison, pictures: Sequence[Picture]) -> str:
    """Returns the section as HTML; nothing if no run was compared."""
    measures = _measures(comparison)
    drawn = [figure(picture) for picture in pictures if picture.plan.section == SECTION]
    if not measures:
        return ""
    parts = [
        paragraph(
            "How alike the output of each layer is to that of the same layer of the dense network on the same "
            "samples: 1 if they are equal up to a rotation and a factor. A layer that computes something "
            "else is no worse for that; it tells where pruning changed the network.",
            "soft",
        )
    ]
    for measure, picture in zip(measures, drawn, strict=True):
        _, values = _collected(comparison, measure)
        parts += [picture, details(f"{measure} as a table", _table(comparison, measure))]
        some = [
            f"{group.label}: {len(values[group.label])} of {len(group.runs)} runs were compared."
            for group in comparison.groups
            if group.label in values and len(values[group.label]) < len(group.runs)
        ]
        parts.append(paragraph(" ".join(some), "soft"))
    return "".join(parts)


def _drawing(means: Mapping[str, Mapping[str, float]], measure: str) -> Callable[[bool], Figure]:
    return lambda narrow: figures.similarity(means, measure=measure, narrow=narrow)


def _measures(comparison: Comparison) -> list[str]:
    kept = (run.similarity for run in comparison.runs)
    return list(dict.fromkeys(found.measure for found in kept if found is not None))


def _collected(comparison: Comparison, measure: str) -> tuple[list[str], Found]:
    """Returns all layers that any run has, and their values; NaN where a run lacks one."""
    found = {
        group.label: [
            run.similarity.layers
            for run in group.runs
            if run.similarity is not None and run.similarity.measure == measure
        ]
        for group in comparison.groups
    }
    layers = list(dict.fromkeys(name for runs in found.values() for one in runs for name in one))
    values = {
        label: torch.tensor([[one.get(name, math.nan) for name in layers] for one in runs]).double()
        for label, runs in found.items()
        if runs
    }
    return layers, values


def _several(values: Found) -> bool:
    return any(len(runs) > 1 for runs in values.values())


def _table(comparison: Comparison, measure: str) -> str:
    layers, values = _collected(comparison, measure)
    columns = []
    for runs in values.values():
        widths = statistics.half_widths(runs, comparison.level).tolist()
        small = ["" if w != w else f"±{ratio(w)}" for w in widths]
        means = runs.nanmean(0).tolist()
        columns.append([cell(ratio(m), s) for m, s in zip(means, small, strict=True)])
    lines = list(zip(layers, zip(*columns, strict=True), strict=True))
    many = "tall" if len(lines) > MANY else ""
    spread = f", small: half of the {percent(comparison.level)} t interval over the runs"
    caption = f"Mean of {measure}{spread if _several(values) else ''}."
    return table(f"{measure} of each layer", ["layer", *values], lines, many) + paragraph(
        caption, "soft"
    )
