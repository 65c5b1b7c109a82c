"""The similarity of layers to those of a dense network."""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_fairprune import figures
from lightning_fairprune.report._compare import Comparison
from lightning_fairprune.report._draw import Drawing


class LayerSimilarity(NamedTuple):
    """The values of one measure, [M, layers] by setting, NaN for a missing layer, and the name of their figure."""

    name: str
    measure: str
    layers: list[str]
    values: dict[str, Tensor]

    @property
    def several(self) -> bool:
        """Whether a setting has several runs."""
        return any(len(runs) > 1 for runs in self.values.values())


def drawings(comparison: Comparison) -> list[Drawing]:
    found = []
    for one in similarities(comparison):
        means = {
            label: dict(zip(one.layers, runs.nanmean(0).tolist(), strict=True))
            for label, runs in one.values.items()
        }
        what = f"{one.measure} of each layer with the same layer of the dense network"
        alt = f"{what}, a line for each setting."
        caption = "Mean over the runs." if one.several else ""
        draw = partial(figures.similarity, means, measure=one.measure)
        found.append(Drawing(one.name, None, one.name, alt, caption, draw))
    return found


def similarities(comparison: Comparison) -> list[LayerSimilarity]:
    kept = (run.similarity for run in comparison.runs)
    measures = list(dict.fromkeys(found.measure for found in kept if found is not None))
    name = "similarity"
    return [
        _of_measure(comparison, measure, name if len(measures) == 1 else f"{name}_{i}")
        for i, measure in enumerate(measures, 1)
    ]


def _of_measure(comparison: Comparison, measure: str, name: str) -> LayerSimilarity:
    found = {
        setting.label: [
            run.similarity.layers
            for run in setting.runs
            if run.similarity is not None and run.similarity.measure == measure
        ]
        for setting in comparison.settings
    }
    layers = list(dict.fromkeys(name for runs in found.values() for one in runs for name in one))
    values = {
        label: torch.tensor([[one.get(name, math.nan) for name in layers] for one in runs]).double()
        for label, runs in found.items()
        if runs
    }
    return LayerSimilarity(name, measure, layers, values)
