from __future__ import annotations

import itertools
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_fairprune import figures

LONG = "German short-haired pointer, Kurzhaar"
SIZES = (2, 10, 100, 1000)


def class_names(num_classes: int) -> list[str]:
    return [LONG if k % 5 == 0 else f"class {k}" for k in range(num_classes)]


def recalls(num_classes: int, seeds: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(num_classes + seeds)
    base = 0.95 - 0.5 * torch.rand(num_classes, generator=generator)
    noise = 0.03 * torch.randn(2, seeds, num_classes, generator=generator)
    drop = 0.1 * (torch.rand(num_classes, generator=generator) - 0.3)
    return (base + noise[0]).clamp(0, 1), (base - drop + noise[1]).clamp(0, 1)


def texts(figure: Any) -> list[Any]:
    """All text that is seen: of the figure, its axes and its legends."""
    found = [*figure.texts]
    for legend in figure.legends:
        found += legend.get_texts()
    for axis in figure.axes:
        found += [*axis.texts, axis.title, axis.xaxis.label, axis.yaxis.label]
        for one, (low, high) in ((axis.xaxis, axis.get_xlim()), (axis.yaxis, axis.get_ylim())):
            low, high = min(low, high), max(low, high)
            inside = [tick for tick in one.get_major_ticks() if low <= tick.get_loc() <= high]
            found += [tick.label1 for tick in inside]
    return [text for text in found if text.get_text().strip() and text.get_visible()]


def check_text(figure: Any) -> None:
    """No text is cut off or overlaps another."""
    figure.draw_without_rendering()
    whole = figure.bbox
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts(figure)]
    for text, box in boxes:
        beyond = max(whole.x0 - box.x0, box.x1 - whole.x1, whole.y0 - box.y0, box.y1 - whole.y1)
        assert beyond <= 0, f"{text!r} is cut off: {box} of {whole}"
    for (one, box), (two, other) in itertools.combinations(boxes, 2):
        overlaps = min(box.x1, other.x1) - max(box.x0, other.x0) > 0.5
        overlaps = overlaps and min(box.y1, other.y1) - max(box.y0, other.y0) > 0.5
        assert not overlaps, f"{one!r} overlaps {two!r}: {box} and {other}"


def rows_of(figure: Any) -> list[str]:
    return [label.get_text() for label in figure.axes[0].get_yticklabels()]


def said(figure: Any) -> str:
    return " ".join(" ".join(text.get_text() for text in texts(figure)).split())


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("seeds", [1, 6])
@pytest.mark.parametrize("num_classes", SIZES)
def test_recall_by_class_can_be_read(num_classes: int, seeds: int, narrow: bool) -> None:
    before, after = recalls(num_classes, seeds)
    for reference in (before, None):
        figure = figures.recall_by_class(
            reference, after, class_names(num_classes), title="Recall on test data", narrow=narrow
        )
        check_text(figure)
        assert figure.get_size_inches()[0] == (4.2 if narrow else 9.0)
        assert len(rows_of(figure)) <= 40
        assert len(figure.axes) == (2 if num_classes > 40 else 1)


def test_recall_by_class_draws_what_it_is_given_most_hurt_first() -> None:
    before = torch.tensor([0.9, 0.8, 0.5, torch.nan, 0.7])
    after = torch.tensor([0.8, 0.5, 0.6, 0.9, torch.nan])
    figure = figures.recall_by_class(before, after, list("abcde"), labels=("full", "pruned"))
    assert rows_of(figure) == ["b", "a", "c"]
    lines = {
        line.get_marker(): sorted(line.get_xdata().tolist())
        for line in figure.axes[0].lines
        if len(line.get_xdata()) and line.get_linestyle() == "None"
    }
    assert lines["D"] == pytest.approx([0.5, 0.8])
    segments = figure.axes[0].collections[0].get_segments()
    assert [segment[:, 0].tolist() for segment in segments] == [
        pytest.approx(pair) for pair in ([0.8, 0.5], [0.9, 0.8], [0.5, 0.6])
    ]
    heights = [segment[0, 1] for segment in segments]
    assert heights == pytest.approx(list(figure.axes[0].get_yticks()))
    assert heights == sorted(heights)
    assert figure.axes[0].yaxis_inverted()
    assert "mean of full: 0.733" in said(figure)
    assert "mean of pruned: 0.633" in said(figure)
    assert "−0.300 −0.100 +0.100" in said(figure)
    assert "2 classes without samples left out." in said(figure)


def test_without_a_reference_the_lowest_recall_is_first() -> None:
    figure = figures.recall_by_class(None, torch.tensor([0.9, 0.5, 0.7]))
    assert rows_of(figure) == ["1", "2", "0"]
    assert "0.500 0.700 0.900" in said(figure)
    assert "left out" not in said(figure)


def test_of_many_classes_both_ends_are_named() -> None:
    before = torch.full((100,), 0.5)
    after = torch.linspace(0.2, 0.9, 100)
    figure = figures.recall_by_class(before, after)
    assert rows_of(figure) == [str(k) for k in (*range(15), *range(85, 100))]
    assert "70 more: see below" in said(figure)
    assert figure.axes[1].lines[0].get_ydata() == pytest.approx((after - before).numpy(), abs=1e-6)


def test_bars_are_the_range_of_few_seeds_and_an_interval_of_many() -> None:
    few = torch.tensor([[0.5, 0.7], [0.6, 0.8], [0.7, torch.nan]])
    figure = figures.recall_by_class(None, few)
    segments = [s[:, 0].tolist() for s in figure.axes[0].collections[0].get_segments()]
    assert segments == [pytest.approx([0.5, 0.7]), pytest.approx([0.7, 0.8])]
    assert "mean of 3 seeds, bars: lowest to highest" in said(figure)
    pytest.importorskip("scipy")
    many = torch.tensor([[0.4], [0.5], [0.5], [0.5], [0.6]])
    figure = figures.recall_by_class(few[:, :1], many)
    reach = 2.776445 * 0.0707107 / 5**0.5
    segments = figure.axes[0].collections[1].get_segments()
    assert segments[0][:, 0].tolist() == pytest.approx([0.5 - reach, 0.5 + reach])
    assert "mean of 3 and 5 seeds, bars: lowest to highest of 3, 95 % t interval of 5" in said(
        figure
    )


def test_no_class_with_samples() -> None:
    figure = figures.recall_by_class(None, torch.full((3,), torch.nan))
    assert said(figure) == "No class has samples. 3 classes without samples left out."


def test_names_and_settings_of_the_user_do_no_harm() -> None:
    matplotlib = pytest.importorskip("matplotlib")
    with matplotlib.rc_context({"figure.facecolor": "black", "text.color": "white"}):
        before = dict(matplotlib.rcParams)
        figure = figures.recall_by_class(None, torch.tensor([0.5, 0.6]), ["$5 note, $10 note", "_"])
        assert dict(matplotlib.rcParams) == before
    assert rows_of(figure) == ["$5 note, $10 note", "_"]
    assert figure.get_facecolor() == (1, 1, 1, 1)
    check_text(figure)


def test_wrong_recalls() -> None:
    good = torch.tensor([0.5, 0.6])
    with pytest.raises(ValueError, match=r"`after` must be recalls in \[0, 1\].*got 90"):
        figures.recall_by_class(None, torch.tensor([90.0, 80.0]))
    with pytest.raises(ValueError, match=r"`before` must be \[K\], or \[M, K\].*got \[1, 1, 2\]"):
        figures.recall_by_class(good[None, None], good)
    with pytest.raises(ValueError, match="must have the same classes, got 2 and 3"):
        figures.recall_by_class(good, torch.rand(3))
    with pytest.raises(ValueError, match="`names` must name each of the 2 classes, got 1"):
        figures.recall_by_class(None, good, ["a"])


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"lightning-fairprune\[report\]"):
        figures.recall_by_class(None, torch.tensor([0.5]))
