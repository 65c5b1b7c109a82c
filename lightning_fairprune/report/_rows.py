"""The table of settings: what it shows of each, on whatever medium."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch

from lightning_fairprune.figures._compression import in_percent
from lightning_fairprune.report._compare import Comparison, measures
from lightning_fairprune.report._words import NOTHING, amount, points, ratio
from lightning_fairprune.statistics import Summary, summarise


class Measure(NamedTuple):
    """A column: its name in `Setting.values`, its heading, and how a value is written."""

    name: str
    heading: str
    write: Callable[[float], str]


def _sparsity(value: float) -> str:
    return NOTHING if value != value else in_percent(value)


MEASURES = (
    Measure("average", "average", points),
    Measure("worst", "worst", points),
    Measure("gap", "gap", points),
    Measure("std", "std", points),
    Measure("alpha", "α", ratio),
    Measure("disparity", "max disparity", points),
    Measure("zero_recall", "classes at 0", amount),
    Measure("density", "density", points),
    Measure("sparsity", "sparsity", _sparsity),
)


def measured(comparison: Comparison) -> list[Measure]:
    """Returns the measures for people: sparsity only where a run has one."""
    sparse = any(run.sparsity is not None for run in comparison.runs)
    return [measure for measure in MEASURES if sparse or measure.name != "sparsity"]


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One setting, or the reference.

    Args:
        label: what it is called.
        runs: how many.
        weakest: the class with the lowest mean recall.
        summaries: by name of the measure; the reference has not all.
        alpha_label: ">", "<" or "?"; empty where it means nothing.
        is_reference: whether it is the reference.
    """

    label: str
    runs: int
    weakest: str
    summaries: Mapping[str, Summary]
    alpha_label: str = ""
    is_reference: bool = False

    def cell(self, measure: Measure) -> tuple[str, str]:
        """Returns the mean, and half the width of its interval or nothing."""
        found = self.summaries.get(measure.name)
        if found is None:
            return measure.write(float("nan")), ""
        reach = (found.high - found.low) / 2
        mean = measure.write(found.mean)
        if measure.name == "alpha" and self.alpha_label:
            mean += f" {self.alpha_label}"
        # Classes at 0 are counted, they have no distribution that a t interval suits.
        plain = reach != reach or measure.name in ("zero_recall", "density", "sparsity")
        return mean, "" if plain else f"±{measure.write(reach)}"


def rows(comparison: Comparison) -> list[Row]:
    """Returns the reference, if there is one, and all settings."""
    found = []
    names = comparison.class_names
    if comparison.reference is not None:
        recall = comparison.reference.recall
        weakest = int(recall.nanmean(0).nan_to_num(torch.inf).argmin())
        values = measures(recall, None)
        own = {
            m: summarise(values[m], comparison.level) for m in ("average", "worst", "gap", "std")
        }
        own["zero_recall"] = summarise(values["zero_recall"], comparison.level)
        found.append(Row("reference", len(recall), names[weakest], own, is_reference=True))
    for setting in comparison.settings:
        # One run has no interval to lie on a side of 1.
        told = setting.before is not None and setting.summaries["alpha"].num_models > 1
        label = setting.alpha_label if told else ""
        weakest_name = names[setting.weakest]
        found.append(Row(setting.label, len(setting.runs), weakest_name, setting.summaries, label))
    return found
