"""The section of the report on sparsity, and its figures."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from test_figures import LONG, check_text, said
from torch import Tensor

from lightning_fairprune import figures, recalls

# ------------------------------------------------------------------------------------ the figures


def made_up(labels: int, levels: list[float], seeds: int) -> dict[str, dict[float, Tensor]]:
    generator = torch.Generator().manual_seed(labels)
    base = 0.95 - 0.4 * torch.rand(10, generator=generator)
    return {
        LONG + str(i): {
            s: (base - 0.05 * i * s + 0.02 * torch.randn(seeds, 10, generator=generator)).clamp(
                0, 1
            )
            for s in levels
        }
        for i in range(labels)
    }


LEVELS = {
    "usual": [0.0, 0.5, 0.9, 0.95, 0.99],
    "many": [0.98 * (1 - (1 - t / 20) ** 3) for t in range(21)],
    "high": [0.0, 0.9, 0.99, 0.999, 0.9999, 0.99995],
    "close": [0.9, 0.901],
    "one": [0.9371],
}


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("levels", LEVELS)
def test_the_curve_can_be_read(levels: str, narrow: bool) -> None:
    labels = 3 if levels == "usual" else 1
    recall = made_up(labels, LEVELS[levels], 2)
    before = {label: next(iter(curve.values())) for label, curve in recall.items()}
    figure = figures.sparsity_curve(recall, before, narrow=narrow)
    check_text(figure)
    assert figure.get_size_inches()[0] == (4.2 if narrow else 9.0)
    for axis in figure.axes:
        assert len(axis.get_xticks()) >= min(2, len(LEVELS[levels]))
    if levels == "usual":
        ticks = [label.get_text() for label in figure.axes[0].get_xticklabels()]
        assert {"0", "50", "90", "99"} <= set(ticks)
    # Lines with many points have no markers, which would hide them.
    assert (figure.axes[0].lines[0].get_marker() == "o") == (levels != "many")


def test_the_curve_draws_what_it_is_given() -> None:
    nan = torch.full((3,), torch.nan)
    dense = torch.tensor([[0.9, 0.7, torch.nan], [0.8, 0.6, torch.nan]])
    sparse = torch.tensor([[0.7, 0.5, torch.nan], [0.8, 0.4, torch.nan]])
    alone = torch.stack([sparse[0], nan])
    recall = {"a": {0.9: sparse, 0.0: dense, 0.99: alone}, "b": {0.99: sparse[0]}}
    figure = figures.sparsity_curve(recall, {"a": dense})
    check_text(figure)
    worst, mean, alpha = figure.axes
    assert worst.lines[0].get_xdata() == pytest.approx([0, 1, 2])
    assert worst.lines[0].get_ydata() == pytest.approx([0.65, 0.45, 0.5])
    assert mean.lines[0].get_ydata() == pytest.approx([0.75, 0.6, 0.6])
    assert worst.lines[1].get_xydata() == pytest.approx(torch.tensor([[2, 0.5]]).numpy())
    assert worst.lines[2].get_ydata() == pytest.approx([0.65, 0.65])  # dashed
    # Balances of 1/8 become 1/6, and of 1/7 a third.
    assert alpha.lines[0].get_ydata() == pytest.approx([1, (4 / 3 + 7 / 3) / 2, 4 / 3])
    assert alpha.lines[1].get_ydata() == pytest.approx([1, 1])
    assert len(alpha.lines) == 2  # nothing is known of b
    each = [float(recalls.intensification(sparse[m, :2], dense[m, :2])) for m in range(2)]
    assert each == pytest.approx([4 / 3, 7 / 3])
    band = worst.collections[0].get_paths()[0].vertices
    found = {(round(x, 6), round(y, 3)) for x, y in band.tolist()}
    assert found >= {(0.0, 0.6), (0.0, 0.7), (1.0, 0.4), (1.0, 0.5), (2.0, 0.5)}
    assert "mean over up to 2 seeds; bands: lowest to highest" in said(figure)
    assert "1 class without samples left out." in said(figure)


def test_without_a_reference_there_is_no_alpha() -> None:
    figure = figures.sparsity_curve({"a": {0.5: torch.tensor([0.5, 0.6])}})
    assert [axis.get_title(loc="left") for axis in figure.axes] == [
        "worst class",
        "average over classes",
    ]
    assert "reference" not in said(figure)


def test_wrong_curves() -> None:
    good = torch.tensor([0.5, 0.6])
    with pytest.raises(ValueError, match="`recall` must hold at least one label, got none"):
        figures.sparsity_curve({})
    with pytest.raises(ValueError, match="at least one sparsity of each label, got 'a'"):
        figures.sparsity_curve({"a": {}})
    for wrong in (1.0, 90, -0.1):
        with pytest.raises(ValueError, match=rf"in \[0, 1\), got {wrong:g} of 'a'"):
            figures.sparsity_curve({"a": {wrong: good}})
    with pytest.raises(ValueError, match=r"`recall` must be in \[0, 1\].*got 90"):
        figures.sparsity_curve({"a": {0.5: torch.tensor([90.0])}})
    with pytest.raises(ValueError, match=r"`recall` must be \[K\], or \[M, K\].*got \[1, 1, 2\]"):
        figures.sparsity_curve({"a": {0.5: good[None, None]}})
    with pytest.raises(ValueError, match=r"at every sparsity, got \[1, 2\] and \[1, 3\] of 'a'"):
        figures.sparsity_curve({"a": {0.5: good, 0.9: torch.rand(3)}})
    with pytest.raises(ValueError, match="`before` must be of labels of `recall`, got 'b'"):
        figures.sparsity_curve({"a": {0.5: good}}, {"b": good})
    with pytest.raises(ValueError, match=r"of `recall`, \[1, 2\], got \[2, 2\] of 'a'"):
        figures.sparsity_curve({"a": {0.5: good}}, {"a": good.repeat(2, 1)})


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("count", [1, 7, 54, 200])
def test_the_layers_can_be_read(count: int, narrow: bool) -> None:
    layers = {f"module.backbone.layer{i // 7}.{i % 7}.conv{i}.weight": 0.5 for i in range(count)}
    layers[next(iter(layers))] = 0.99953
    figure = figures.layer_sparsity(layers, total=0.9, narrow=narrow)
    check_text(figure)
    assert figure.get_size_inches()[1] < 14
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert 1 <= len(names) <= 40
    assert names[0].endswith("conv0")
    assert ("99.953 %" in [text.get_text() for text in figure.axes[0].texts]) == (count <= 40)


def test_the_layers_are_drawn_as_they_are_given() -> None:
    layers: dict[str, Any] = {"conv.weight": 0.5, "dead.weight": 1.0, "none": math.nan, "fc": 0.8}
    figure = figures.layer_sparsity(layers, total=0.75)
    check_text(figure)
    whole, removed = figure.axes[0].containers
    assert [bar.get_width() for bar in whole] == [1, 1, 1]
    assert [bar.get_width() for bar in removed] == [0.5, 1, 0.8]
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == ["conv.weight", "dead.weight", "fc"]
    assert figure.axes[0].yaxis_inverted()
    assert figure.axes[0].lines[0].get_xdata() == [0.75, 0.75]
    words = said(figure)
    assert "Sparsest: dead.weight, 100 %; densest: conv.weight, 50 %" in words
    assert "all weights together: 75 %" in words
    assert "Without any weight left: dead.weight." in words
    even = figures.layer_sparsity({"a": 0.5, "b": 0.5})
    assert "Every layer: 50 %" in said(even)
    assert len(even.axes[0].lines) == 0


def test_wrong_layers() -> None:
    for nothing in ({}, {"a": math.nan}):
        with pytest.raises(ValueError, match="`layers` must have at least one value, got"):
            figures.layer_sparsity(nothing)
    with pytest.raises(ValueError, match=r"`layers` must be in \[0, 1\] or NaN, got 90 of 'fc'"):
        figures.layer_sparsity({"fc": 90.0})
