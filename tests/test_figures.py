from __future__ import annotations

import itertools
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_fairprune import figures
from lightning_fairprune.counts import ClassCounts
from lightning_fairprune.figures import _sheet, _time
from lightning_fairprune.history import Evaluation
from lightning_fairprune.selection.decision import Estimate

LONG = "German short-haired pointer, Kurzhaar"


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
        left, right = axis._left_title, axis._right_title
        found += [*axis.texts, left, axis.title, right, axis.xaxis.label, axis.yaxis.label]
        for one, (low, high) in ((axis.xaxis, axis.get_xlim()), (axis.yaxis, axis.get_ylim())):
            low, high = min(low, high), max(low, high)
            inside = [tick for tick in one.get_major_ticks() if low <= tick.get_loc() <= high]
            found += [tick.label1 for tick in inside]
    return [text for text in found if text.get_text().strip() and text.get_visible()]


def check_text(figure: Any) -> None:
    """No text is cut off or overlaps another."""
    from matplotlib.text import Text  # an annotation's own extent has its line, too

    figure.draw_without_rendering()
    whole = figure.bbox
    boxes = [(text.get_text(), Text.get_window_extent(text)) for text in texts(figure)]
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


def drawn(num_classes: int, seeds: int, narrow: bool) -> dict[str, Any]:
    """Every figure, of made-up results."""
    generator = torch.Generator().manual_seed(num_classes)
    names = class_names(num_classes)
    before, after = recalls(num_classes, seeds)
    sizes = torch.randint(50, 5000, (num_classes,), generator=generator)
    quota = (sizes * (1.05 - before[0])).long()
    history = [Estimate(e, before[0], (quota * (0.9 + 0.01 * e)).long()) for e in (2, 5, 9)]
    runs = {label: [run(seed) for seed in range(seeds)] for label in ("random", "DRoP", LONG)}
    size = {"narrow": narrow}
    return {
        "recall_by_class": figures.recall_by_class(before, after, names, title="Recall on test data", **size),
        "recalls_over_epochs": figures.recalls_over_epochs(runs, **size),
        "density_against_recall": figures.density_against_recall(quota / sizes, before[0], names, **size),
        "kept_by_class": figures.kept_by_class(quota, sizes, names, **size),
        "quotas_over_time": figures.quotas_over_time(history, sizes, names, **size),
        "intensification_scatter": figures.intensification_scatter(before, after, names, **size),
        "similarity": figures.similarity({label: dict(zip(names, values.tolist(), strict=True)) for label, values in zip(runs, before, strict=False)}, **size),
        "sparsity_curve": figures.sparsity_curve({label: {0.0: before, 0.5: before, 0.9: after, 0.99: after / 2} for label in runs}, {LONG: before}, **size),
        "layer_sparsity": figures.layer_sparsity(dict(zip(names, before[0].tolist(), strict=True)), total=0.9, **size),
    }  # fmt: skip


def run(seed: int, pruned: int = 4) -> list[Evaluation]:
    generator = torch.Generator().manual_seed(seed)
    found = []
    for epoch in range(1, 9):
        tp = torch.randint(50 + 3 * epoch, 60 + 4 * epoch, (10,), generator=generator)
        counts = ClassCounts(tp, torch.full((10,), 100))
        found.append(Evaluation("val", epoch, 10 * epoch, epoch >= pruned, counts))
    return found


@pytest.mark.parametrize(
    ("num_classes", "seeds", "narrow"),
    [(2, 1, True), (10, 6, False), (10, 2, True), (20, 1, True), (100, 2, False), (1000, 1, True)],
)
def test_every_figure_can_be_read(num_classes: int, seeds: int, narrow: bool) -> None:
    found = drawn(num_classes, seeds, narrow)
    assert found.keys() == set(figures.__all__)
    for name, figure in found.items():
        check_text(figure)
        assert figure.get_size_inches()[0] == (4.2 if narrow else 9.0), name
        if name in ("recall_by_class", "kept_by_class"):
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


def test_settings_of_the_user_neither_change_nor_matter() -> None:
    matplotlib = pytest.importorskip("matplotlib")
    before, after = recalls(50, 1)

    def pixels() -> bytes:
        figure = figures.recall_by_class(before, after)
        figure.canvas.draw()
        return bytes(figure.canvas.buffer_rgba())

    usual = pixels()
    with matplotlib.style.context(["dark_background", {"font.size": 20, "axes.grid": True}]):
        settings = dict(matplotlib.rcParams)
        assert pixels() == usual
        assert dict(matplotlib.rcParams) == settings


def test_names_are_drawn_as_they_are() -> None:
    names = ["$5 note, $10 note", "_", "", "a" * 200, "two\nlines", 7]
    figure = figures.recall_by_class(None, torch.linspace(0.1, 0.6, 6), names, narrow=True)
    check_text(figure)
    rows = rows_of(figure)
    assert " ".join(rows[0].split()) == "$5 note, $10 note"
    assert rows[1:3] == ["_", ""]
    assert rows[3].startswith("aaaa")
    assert rows[3].endswith("a…")
    assert rows[4:] == ["two lines", "7"]


def test_pyplot_knows_nothing_of_a_figure() -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    before = pyplot.get_fignums()
    figure = figures.recall_by_class(None, torch.rand(3))
    assert pyplot.get_fignums() == before
    assert figure.canvas.manager is None


def test_wrong_recalls() -> None:
    good = torch.tensor([0.5, 0.6])
    with pytest.raises(ValueError, match=r"`after` must be in \[0, 1\].*got 90"):
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


def test_what_is_drawn_does_not_grow_with_the_classes() -> None:
    # An artist for each class would take seconds for a thousand; beyond 40 only some have a row.
    few, many = (
        len(figures.recall_by_class(*recalls(num_classes, 1)).findobj())
        for num_classes in (100, 1000)
    )
    assert many <= few + 20  # ticks of the curve


def test_recalls_over_epochs_draws_means_bands_and_where_pruning_began() -> None:
    def seed(*recalls: float) -> list[Evaluation]:
        support = torch.tensor([100, 100, 0])
        counts = [ClassCounts(torch.tensor([round(100 * r), 100, 0]), support) for r in recalls]
        return [Evaluation("val", e + 1, e, e >= 1, c) for e, c in enumerate(counts)]

    figure = figures.recalls_over_epochs({"a": [seed(0.5, 0.7), seed(0.6, 0.7, 0.8)]})
    worst, mean, gap = figure.axes
    assert worst.lines[0].get_xdata().tolist() == [1, 2, 3]
    assert worst.lines[0].get_ydata() == pytest.approx([0.55, 0.7, 0.8])
    assert mean.lines[0].get_ydata() == pytest.approx([0.775, 0.85, 0.9])
    assert gap.lines[0].get_ydata() == pytest.approx([0.45, 0.3, 0.2])
    assert all(list(axis.lines[1].get_xdata()) == [2, 2] for axis in figure.axes)
    band = worst.collections[0].get_paths()[0].vertices
    assert {(x, round(y, 3)) for x, y in band.tolist()} >= {(1.0, 0.5), (1.0, 0.6), (3.0, 0.8)}
    assert "pruned from here on" in said(figure)
    assert "mean over up to 2 seeds; bands: lowest to highest" in said(figure)
    assert "1 class without samples left out." in said(figure)


def test_of_several_evaluations_in_an_epoch_the_last_counts() -> None:
    evaluations = [e._replace(epoch=1, pruned=True) for e in run(0)]
    figure = figures.recalls_over_epochs({"a": [evaluations]})
    line = figure.axes[0].lines[0]
    assert line.get_xdata().tolist() == [1]
    assert line.get_ydata().tolist() == pytest.approx([evaluations[-1].counts.worst])
    assert "pruned" not in said(figure)  # it was from the start


def test_wrong_runs() -> None:
    with pytest.raises(ValueError, match="`runs` must hold at least one label, got none"):
        figures.recalls_over_epochs({})
    for nothing in ([], [[]]):
        with pytest.raises(ValueError, match=r"at least one evaluation of each seed.*for 'a'"):
            figures.recalls_over_epochs({"a": nothing})
    two = [run(0)[0], run(0)[1]._replace(name="test")]
    with pytest.raises(ValueError, match="of one data set, got test, val for 'a': choose with"):
        figures.recalls_over_epochs({"a": [two]})


def test_density_against_recall_leaves_out_classes_without_samples() -> None:
    density, recall = torch.tensor([0.2, torch.nan, 0.6]), torch.tensor([0.9, 0.7, 0.5])
    figure = figures.density_against_recall(density, recall, list("abc"))
    assert figure.axes[0].lines[0].get_xydata() == pytest.approx(
        torch.tensor([[0.9, 0.2], [0.5, 0.6]])
    )
    labels = {text.get_text(): text.xy for text in figure.axes[0].texts}
    assert labels == {"a": pytest.approx((0.9, 0.2)), "c": pytest.approx((0.5, 0.6))}
    assert "1 class without samples left out." in said(figure)
    figure = figures.density_against_recall(torch.tensor([torch.nan]), recall[:1])
    assert said(figure) == "No class has samples."


def test_of_many_points_the_extremes_are_named() -> None:
    density = torch.linspace(0.1, 0.9, 50)
    figure = figures.density_against_recall(density, 1 - density)
    found = {int(text.get_text()) for text in figure.axes[0].texts}
    assert found == {0, 1, 2, 47, 48, 49}
    assert "50 classes; named are those at either end of either axis." in said(figure)


def test_names_that_find_no_room_are_listed() -> None:
    same = torch.full((20,), 0.5)
    figure = figures.density_against_recall(
        same, same, [f"{LONG} {k}" for k in range(20)], narrow=True
    )
    check_text(figure)
    written = len(figure.axes[0].texts)
    assert 3 <= written < 20
    listed = said(figure).split("Without room for a name: ")[1]
    assert listed.count("Kurzhaar") == 20 - written


def test_wrong_densities() -> None:
    half = torch.tensor([0.5, 0.5])
    with pytest.raises(ValueError, match=r"`density` must be in \[0, 1\].*got 2"):
        figures.density_against_recall(4 * half, half)
    with pytest.raises(ValueError, match=r"must both be \[K\], got \[2\] and \[1\]"):
        figures.density_against_recall(half, half[:1])


def test_kept_by_class_draws_kept_and_dropped_least_first() -> None:
    quota, sizes = torch.tensor([30, 5, 0, 8]), torch.tensor([60, 50, 0, 8])
    figure = figures.kept_by_class(quota, sizes, list("abcd"))
    assert rows_of(figure) == ["b", "a", "d"]
    kept, dropped = figure.axes[0].containers
    assert [bar.get_width() for bar in kept] == [5, 30, 8]
    assert [(bar.get_x(), bar.get_width()) for bar in dropped] == [(5, 45), (30, 30), (8, 0)]
    heights = [bar.get_y() + bar.get_height() / 2 for bar in kept]
    assert heights == pytest.approx(list(figure.axes[0].get_yticks()))
    assert "kept: 43 of 118 (36.4 %)" in said(figure)
    assert "10.0 % 5 of 50 50.0 % 30 of 60 100.0 % 8 of 8" in said(figure)
    assert "1 class without samples left out." in said(figure)
    figure = figures.kept_by_class(torch.zeros(2), torch.zeros(2))
    assert said(figure) == "No class has samples. 2 classes without samples left out."


def test_wrong_quotas() -> None:
    sizes = torch.tensor([4, 4])
    with pytest.raises(
        ValueError, match="between 0 and the size of the class, got 5 of 4 for class 1"
    ):
        figures.kept_by_class(torch.tensor([4, 5]), sizes)
    with pytest.raises(
        ValueError, match=r"`quota` and `sizes` must both be \[K\], got \[1\] and \[2\]"
    ):
        figures.quotas_over_time([Estimate(1, None, torch.tensor([1]))], sizes)


def test_quotas_over_time_draws_every_estimate() -> None:
    sizes = torch.tensor([10, 20, 0])
    history = [
        Estimate(1, None, torch.tensor([5, 10, 0])),
        Estimate(2, None, None),
        Estimate(4, None, torch.tensor([2, 16, 0])),
    ]
    figure = figures.quotas_over_time(history, sizes, list("abc"))
    lines = [
        (line.get_xdata().tolist(), line.get_ydata().tolist()) for line in figure.axes[0].lines
    ]
    assert lines[0] == ([1, 4], pytest.approx([0.5, 0.2]))
    assert lines[1] == ([1, 4], pytest.approx([0.5, 0.8]))
    assert lines[2] == ([1, 4], pytest.approx([0.5, 0.6]))
    assert [text.get_text() for text in figure.axes[0].texts] == ["a", "b"]
    assert "1 class without samples left out." in said(figure)
    check_text(figures.quotas_over_time(history[:1], sizes))
    assert said(figures.quotas_over_time([], sizes)) == "No quotas were set."


def test_quotas_of_many_classes_are_all_drawn_and_the_ends_named() -> None:
    sizes = torch.full((50,), 100)
    history = [Estimate(e, None, torch.arange(50) + e) for e in (1, 2)]
    figure = figures.quotas_over_time(history, sizes)
    named = {int(text.get_text()) for text in figure.axes[0].texts}
    assert named == {0, 1, 2, 3, 46, 47, 48, 49}
    assert len(figure.axes[0].collections[0].get_segments()) == 42
    assert "42 more classes" in said(figure)


def test_intensification_scatter_says_what_happened() -> None:
    pytest.importorskip("scipy")
    before = torch.tensor([[0.9, 0.7], [0.9, 0.7], [0.9, 0.7]])
    wider = torch.tensor([[0.7, 0.5], [0.7, 0.5], [0.8, 0.6]])
    figure = figures.intensification_scatter(before, wider, ["cat", "dog"])
    words = said(figure)
    assert "does not clearly change the differences between classes: mean α = 1.27 of 3" in words
    assert "99 % interval 0.64 to 1.90 (?)" in words
    assert "slope 1.27, r² = 1.00" in words
    assert "α above 1: the differences widen; below 1: they shrink." in words
    every, means = figure.axes[0].lines[:2]
    assert every.get_xdata() == pytest.approx([0.125, -0.125] * 3)
    assert every.get_ydata() == pytest.approx([1 / 6, -1 / 6] * 2 + [1 / 7, -1 / 7])
    assert means.get_xydata() == pytest.approx(
        torch.tensor([[0.125, 10 / 63], [-0.125, -10 / 63]]), abs=1e-6
    )
    same, fit = figure.axes[0].lines[2:4]
    assert list(same.get_xdata()) == list(same.get_ydata())
    assert fit.get_ydata() / fit.get_xdata() == pytest.approx([1.269841] * 2)
    shrunk = figures.intensification_scatter(wider[:2], before[:2])
    assert "Pruning shrinks the differences between classes: mean α = 0.75 of 2" in said(shrunk)


def test_intensification_of_one_model_has_no_interval() -> None:
    before, after = torch.tensor([0.9, 0.7, torch.nan]), torch.tensor([0.8, 0.8, 0.5])
    figure = figures.intensification_scatter(before, after)
    assert "Pruning shrinks the differences between classes: α = 0.00" in said(figure)
    assert "interval" not in said(figure)
    assert "1 class without samples left out." in said(figure)
    assert "cannot be compared" in said(figures.intensification_scatter(after[:2], before[:2]))
    nothing = torch.full((2, 3), torch.nan)
    assert "No class has samples." in said(figures.intensification_scatter(nothing, nothing))


def test_wrong_models() -> None:
    with pytest.raises(ValueError, match=r"must have one shape.*got \[2, 3\] and \[3\]"):
        figures.intensification_scatter(torch.rand(2, 3), torch.rand(3))
    with pytest.raises(ValueError, match=r"`after` must be in \[0, 1\]"):
        figures.intensification_scatter(torch.rand(3), torch.rand(3) + 2)


def test_names_are_moved_apart() -> None:
    assert _time.apart([0.0, 0.1, 3.0], 0.5, 3.0) == pytest.approx([0.0, 0.5, 3.0])
    assert _time.apart([2.9, 3.0], 0.5, 3.0) == pytest.approx([2.5, 3.0])


ANY_LENGTH = [
    "x" * 10_000,
    "a " * 50_000,
    "a\nb\n" * 500,
    "$\\frac{1}{",
    "<script>",
    "",
    None,
    7,
    7,
    "\x1b[2J",
    "é" * 10**6,
]
DRAWN: dict[str, Any] = {
    "recall_by_class": lambda r, n: figures.recall_by_class(r.flip(0), r, n),
    "density_against_recall": lambda r, n: figures.density_against_recall(r, r.flip(0), n),
    "kept_by_class": lambda r, n: figures.kept_by_class(
        (r * 9).long(), torch.full_like(r, 9).long(), n
    ),
    "intensification_scatter": lambda r, n: figures.intensification_scatter(r.flip(0), r, n),
}


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize("copies", [1, 91])
def test_names_of_any_length_are_one_short_line(name: str, copies: int) -> None:
    recall = torch.linspace(0, 1, copies * len(ANY_LENGTH), dtype=torch.float64)
    measured: list[int] = []
    measure = _sheet.Sheet.measure
    with pytest.MonkeyPatch.context() as patch:

        def counted(sheet: Any, text: str, bold: bool = False) -> float:
            measured.append(len(text))
            return measure(sheet, text, bold)

        patch.setattr(_sheet.Sheet, "measure", counted)
        figure = DRAWN[name](recall, ANY_LENGTH * copies)
    assert max(measured) <= 2_001  # time grows with the text that is measured
    assert sum(measured) < 100_000
    width, height = figure.get_size_inches()
    assert width <= 9
    assert height < 25
    texts = [
        text.get_text() for text in figure.findobj(pytest.importorskip("matplotlib.text").Text)
    ]
    assert not any("\x1b" in text for text in texts)


def test_a_long_name_keeps_both_ends() -> None:
    figure = figures.recall_by_class(None, torch.tensor([0.5, 0.4]), ["a" + "x" * 9999 + "b", ""])
    shown = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert shown[0] == ""
    assert shown[1].replace("\n", "")[0] == "a"
    assert len(shown[1]) <= 62
