"""The section of the report on sparsity, and its figures."""

from __future__ import annotations

import csv
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from test_figures import LONG, check_text, said
from test_report import Page
from test_report_similarity import EVIL, text_of
from torch import Tensor

from lightning_fairprune import figures, recalls, statistics
from lightning_fairprune.counts import ClassCounts
from lightning_fairprune.history import Evaluation, RecallHistory
from lightning_fairprune.records.sparsity_record import PruneStep, SparsityRecord
from lightning_fairprune.report import _build, _sparsity, report
from lightning_fairprune.report._compare import Comparison, compare
from lightning_fairprune.report._read import read
from lightning_fairprune.report._settings import configuration, grouped
from lightning_fairprune.report._sparsity import by_sparsity, collected

MAGNITUDE = {"criterion": "magnitude", "sparsity": 0.9, "seed": 0}
# Of a cat and a dog, of 100 each, at the end of each epoch; pruned after epochs 2 and 4.
RIGHT = ((60, 50), (90, 70), (80, 40), (80, 60), (60, 20), (70, 30))


def counts(tp: tuple[int, ...], support: int = 100) -> ClassCounts:
    return ClassCounts(torch.tensor(tp), torch.full((len(tp),), support))


def make(
    folder: Path,
    seed: int | None = 0,
    *,
    shift: int = 0,
    data: str = "val",
    settings: dict[str, Any] | None = MAGNITUDE,
    prunings: tuple[tuple[int, float], ...] = ((20, 0.5), (40, 0.9)),
    test: tuple[int, int] | None = None,
    reference: dict[str, ClassCounts] | None = None,
    epochs: int = 6,
) -> Path:
    """Writes the files of a run of 6 epochs with 10 steps; without settings none on weights."""
    first = prunings[0][0] if prunings and settings is not None else 10**9
    evaluations = [
        Evaluation(data, e, 10 * e, 10 * e >= first, counts((a + shift, b + shift)))
        for e, (a, b) in enumerate(RIGHT[:epochs], 1)
    ]
    if test is not None:
        evaluations.append(Evaluation("test", 0, 60, settings is not None, counts(test)))
    history = RecallHistory(tuple(evaluations), ("cat", "dog"), reference or {}, seed)
    history.save(folder / "fairprune")
    if settings is not None:
        steps = tuple(
            PruneStep(s // 10, s, total, total, {"conv.weight": total - 0.1, EVIL: total})
            for s, total in prunings
        )
        SparsityRecord(settings, steps).save(folder / "fairprune")
    return folder


def write(root: Path, *runs: Path | str, monkeypatch: pytest.MonkeyPatch, draw: bool = True) -> str:
    """Returns the page, for which the figures of this section are drawn, or none."""
    monkeypatch.setattr(_build, "drawings", lambda comparison: [])
    if not draw:
        monkeypatch.setattr(_sparsity, "drawings", lambda comparison: [])
    report(list(runs), out=root / "out")
    return (root / "out" / "index.html").read_text()


def test_the_page_says_what_the_sparsity_of_layers_is_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in (0, 1):
        folder = make(tmp_path / f"s{seed}", seed)
        steps = SparsityRecord.load(folder).steps
        of_all = [0.1 + 0.2 * seed, 0.2 + 0.2 * seed]
        known = tuple(s._replace(of_all=a) for s, a in zip(steps, of_all, strict=True))
        SparsityRecord(MAGNITUDE, known).save(folder / "fairprune")
    words = "All layers that may be pruned; 30 % of all parameters are removed."
    assert words in text_of(
        section_of(write(tmp_path, *tmp_path.glob("s*"), monkeypatch=monkeypatch))
    )


def section_of(page: str) -> str:
    return page.split(">Sparsity</h2>")[1].split("</section>")[0]


def rows_of(html: str) -> list[str]:
    return [text_of(row) for row in re.findall(r"<tr>.*?</tr>", html)]


def comparison(*runs: Path | str, reference: tuple[Path, ...] = (), **options: Any) -> Comparison:
    return compare(read(list(runs)), read(list(reference)), **options)


def test_the_last_evaluation_at_each_sparsity_counts(tmp_path: Path) -> None:
    (run,) = read([make(tmp_path / "a", test=(50, 10))])
    assert run.sparsity is not None
    assert repr(run.sparsity) == "SparsityRecord(prunings=2, sparsity=0.9)"
    found = {s: c.tp.tolist() for s, c in by_sparsity(run, "val").items()}
    # Evaluated after the step of a pruning, it is that of the pruned network.
    assert found == {0.0: [60, 50], 0.5: [80, 40], 0.9: [70, 30]}
    assert {s: c.tp.tolist() for s, c in by_sparsity(run, "test").items()} == {0.9: [50, 10]}
    (same,) = read([tmp_path / "a" / "fairprune"])
    assert same.sparsity == run.sparsity


def test_an_evaluation_after_the_fit_does_not_replace_those_during_it(tmp_path: Path) -> None:
    folder = make(tmp_path / "a")
    history = RecallHistory.load(folder)
    best = Evaluation("val", 0, 60, True, counts((99, 98)))
    RecallHistory((*history.evaluations, best), history.class_names).save(folder / "fairprune")
    (run,) = read([folder])
    assert by_sparsity(run, "val")[0.9].tp.tolist() == [70, 30]


def test_the_test_is_used_where_there_is_no_validation(tmp_path: Path) -> None:
    make(tmp_path / "a", test=(50, 10))
    (found,) = collected(comparison(tmp_path / "a"))
    assert list(found.recall) == [0.0, 0.5, 0.9]
    make(tmp_path / "b", test=(50, 10), epochs=0)
    (found,) = collected(comparison(tmp_path / "b"))
    assert {s: r.tolist() for s, r in found.recall.items()} == {0.9: [[0.5, 0.1]]}
    assert found.before is None


def test_seeds_are_aligned_and_what_one_lacks_is_nan(tmp_path: Path) -> None:
    make(tmp_path / "a" / "0", 0)
    make(tmp_path / "a" / "1", 1, shift=2, epochs=3)
    make(tmp_path / "a" / "2", 2, settings=None)
    make(tmp_path / "a" / "3", 3, prunings=())
    (found,) = collected(comparison(f"a={tmp_path / 'a'}"))
    assert len(found.runs) == 2
    assert found.recall[0.9][0].tolist() == [0.7, 0.3]
    assert bool(found.recall[0.9][1].isnan().all())
    assert found.recall[0.5].tolist() == [[0.8, 0.4], [0.82, 0.42]]


def test_the_reference_is_of_the_report_else_the_run_else_its_dense_network(tmp_path: Path) -> None:
    own = {"val": counts((95, 75))}
    for seed in (0, 1):
        make(tmp_path / "full" / str(seed), seed, settings=None, shift=seed)
        make(tmp_path / "plain" / str(seed), seed)
        make(tmp_path / "kept" / str(seed), seed, reference=own)
    full = (tmp_path / "full",)
    both = [f"plain={tmp_path / 'plain'}", f"kept={tmp_path / 'kept'}"]
    for one in collected(comparison(*both, reference=full)):
        assert one.whose == "the reference run of equal seed"
        assert one.before.flatten().tolist() == pytest.approx([0.7, 0.3, 0.71, 0.31])
    (other,) = collected(comparison(tmp_path / "plain" / "0", reference=(tmp_path / "full" / "1",)))
    assert other.whose == "the reference run"
    make(tmp_path / "unknown", None)
    (mean,) = collected(comparison(tmp_path / "unknown", reference=full))
    assert mean.whose == "the mean of the reference runs"
    assert mean.before[0].tolist() == pytest.approx([0.705, 0.305])
    plain, kept = collected(comparison(*both))
    assert kept.whose == "the reference that each run has kept"
    assert kept.before.tolist() == [[0.95, 0.75]] * 2
    assert plain.whose == "the last evaluation of each run before pruning"
    assert torch.equal(plain.before, plain.recall[0.0])


def test_a_reference_of_other_data_is_not_used(tmp_path: Path) -> None:
    # A few samples may differ: with several ranks, some are repeated.
    run = make(tmp_path / "a", test=(50, 10), reference={"val": counts((90, 70), 105)})
    full = make(tmp_path / "full", settings=None, data="val/1", test=(90, 70))
    (found,) = collected(comparison(run, reference=(full,)))
    assert found.whose == "the reference that each run has kept"
    run = make(tmp_path / "b", test=(50, 10), reference={"val": counts((90, 70), 1000)})
    (found,) = collected(comparison(run, reference=(full,)))
    assert found.whose == "the last evaluation of each run before pruning"


def test_the_page_shows_each_sparsity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed, shift in enumerate((0, 4)):
        make(tmp_path / "a" / f"s{seed}", seed, shift=shift)
    make(tmp_path / "a" / "s2", 2, settings=None)
    make(tmp_path / "b" / "s0", 0, prunings=((20, 1.0),), reference={"val": counts((90, 70))})
    make(tmp_path / "c" / "s0", 0, settings=None)
    runs = [f"<b>steps={tmp_path / 'a'}", f"dead={tmp_path / 'b'}", f"none={tmp_path / 'c'}"]
    page = write(tmp_path, *runs, monkeypatch=monkeypatch)
    assert "script" not in dict(Page(page).tags)
    titles = re.findall(r"<h2 [^>]*>(.*?)</h2>", page)
    assert titles.index("Recall of each class") < titles.index("Sparsity")
    assert titles.index("Sparsity") < titles.index("How to read this page")
    assert page.count('<a href="#sparsity">Sparsity</a>') == 1
    section = section_of(page)
    dense, pruned = [[0.6, 0.5], [0.64, 0.54]], {0.5: (0.8, 0.4), 0.9: (0.7, 0.3)}
    alpha = {
        s: statistics.intensification_ratio(dense, [[a, b], [a + 0.04, b + 0.04]])
        for s, (a, b) in pruned.items()
    }
    half = {s: statistics.half_widths(value) for s, value in alpha.items()}
    assert rows_of(section)[:4] == [
        "sparsity compression runs worst average gap α",
        "0 % 1× 2 52.0 ±25.4 57.0 ±25.4 10.0 ±0.0 1.00 ±0.00",
        f"50 % 2× 2 42.0 ±25.4 62.0 ±25.4 40.0 ±0.0 {alpha[0.5].mean():.2f} ±{half[0.5]:.2f}",
        f"90 % 10× 2 32.0 ±25.4 52.0 ±25.4 40.0 ±0.0 {alpha[0.9].mean():.2f} ±{half[0.9]:.2f}",
    ]
    assert rows_of(section)[5].startswith("0 % 1× 1 50.0 55.0 10.0 ")
    assert rows_of(section)[6].startswith("100 % – 1 30.0 50.0 40.0 ")
    assert "<h3>&lt;b&gt;steps</h3>" in section
    assert "<h3>none</h3>" not in section
    assert "2 of 3 runs; of the others no sparsity is known." in section
    dashed = "and dashed: relative to the"
    for words in (
        f"α of &lt;b&gt;steps {dashed} last evaluation of each run before pruning.",
        f"α of dead {dashed} reference that each run has kept.",
    ):
        assert words in text_of(section)
    pictures = {p.name for p in (tmp_path / "out").glob("*.png")}
    assert pictures == {"sparsity.png", "layer_sparsity_1.png", "layer_sparsity_2.png"}


def test_tables_and_files_have_the_sparsity_of_what_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "a", test=(50, 10))
    make(tmp_path / "b", settings=None, test=(50, 40))
    page = write(tmp_path, tmp_path / "a", tmp_path / "b", monkeypatch=monkeypatch, draw=False)
    assert rows_of(page)[0].split()[-4:] == ["density", "sparsity", "worst", "class"]
    assert rows_of(page)[1].split()[-3:] == ["–", "90", "dog"]
    assert rows_of(page)[2].split()[-3:] == ["–", "–", "dog"]
    assert "| density | sparsity | worst class |" in (tmp_path / "out" / "summary.md").read_text()
    for name in ("summary", "runs"):
        lines = (tmp_path / "out" / f"{name}.csv").read_text().splitlines()
        assert [row["sparsity"] for row in csv.DictReader(lines)] == ["0.9", ""]


def test_without_the_file_there_is_no_section(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "run", settings=None)
    make(tmp_path / "not yet", 1, prunings=())
    page = write(tmp_path, tmp_path / "run", monkeypatch=monkeypatch)
    assert "parsity" not in page
    assert "sparsity" not in (tmp_path / "out" / "summary.md").read_text()
    page = write(tmp_path, tmp_path / "not yet", monkeypatch=monkeypatch)
    assert ">Sparsity</h2>" not in page
    assert not list((tmp_path / "out").glob("*.png"))


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    run = make(tmp_path / "run")
    (run / "fairprune" / "sparsity.json").write_text("{")
    with pytest.raises(ValueError, match=r"sparsity.json' cannot be loaded: it is damaged"):
        read([run])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ([MAGNITUDE], ["criterion=magnitude, sparsity=0.9"]),
        ([MAGNITUDE, None], ["criterion=magnitude, sparsity=0.9", "no pruning"]),
        (
            [MAGNITUDE, {**MAGNITUDE, "criterion": "undecayed"}],
            ["criterion=magnitude", "criterion=undecayed"],
        ),
        ([MAGNITUDE, {**MAGNITUDE, "sparsity": 0.98}], ["sparsity=0.9", "sparsity=0.98"]),
        ([MAGNITUDE, {**MAGNITUDE, "floor": 1}], None),
        ([MAGNITUDE, {**MAGNITUDE, "seed": 1}], ["criterion=magnitude, sparsity=0.9"]),
        ([{}], ["weights pruned"]),
    ],
)
def test_a_label_says_what_is_particular(
    tmp_path: Path, settings: list[Any], expected: list[str] | None
) -> None:
    for i, one in enumerate(settings):
        make(tmp_path / f"v{i}", i, settings=one)
    found = list(grouped(read([tmp_path])))
    if expected is None:
        assert len(set(found)) == 2
    else:
        assert found == expected


def test_settings_that_differ_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "a")
    make(tmp_path / "b", settings={**MAGNITUDE, "criterion": EVIL})
    make(tmp_path / "c", settings=None)
    (run,) = read([tmp_path / "a"])
    weights = {"weights.criterion": "magnitude", "weights.sparsity": "0.9"}
    assert configuration(run) == {"pruning": "weights"} | weights
    runs = [f"{name}={tmp_path / name}" for name in "abc"]
    page = write(tmp_path, *runs, monkeypatch=monkeypatch, draw=False)
    assert EVIL not in page
    shown = rows_of(page.split('aria-label="Settings that differ"')[1])
    assert shown[0] == "differs a b c"
    assert shown[1] == "pruning weights weights none"
    assert shown[2].startswith("weights.criterion magnitude &lt;/td&gt;")
    assert shown[3] == "weights.sparsity 0.9 0.9 –"
    assert "weight pruning</p>\n<pre>criterion: magnitude\nsparsity: 0.9\nseed: 0</pre>" in page


def made_up(labels: int, levels: list[float], seeds: int) -> dict[str, dict[float, Tensor]]:
    generator = torch.Generator().manual_seed(labels)
    base = 0.95 - 0.4 * torch.rand(10, generator=generator)

    def recall(fall: float) -> Tensor:
        return (base - fall + 0.02 * torch.randn(seeds, 10, generator=generator)).clamp(0, 1)

    return {LONG + str(i): {s: recall(0.05 * i * s) for s in levels} for i in range(labels)}


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
    band = torch.as_tensor(worst.collections[0].get_paths()[0].vertices)
    found = {(round(x, 6), round(y, 3)) for x, y in band.tolist()}
    assert found >= {(0.0, 0.6), (0.0, 0.7), (1.0, 0.4), (1.0, 0.5), (2.0, 0.5)}
    assert "mean over up to 2 seeds; bands: lowest to highest" in said(figure)
    assert "1 class without samples left out." in said(figure)


def test_without_a_reference_there_is_no_alpha() -> None:
    figure = figures.sparsity_curve({"a": {0.5: torch.tensor([0.5, 0.6])}})
    titles = [axis.get_title(loc="left") for axis in figure.axes]
    assert titles == ["worst class", "average over classes"]
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
    (bars,) = figure.axes[0].containers
    full = figure.axes[0].get_xlim()[1]
    widths = [bar.get_width() for bar in bars]
    assert widths == pytest.approx([math.log10(2), full, math.log10(5)])
    assert full > math.log10(5)
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == ["conv.weight", "dead.weight", "fc"]
    assert figure.axes[0].yaxis_inverted()
    assert figure.axes[0].lines[0].get_xdata() == pytest.approx([math.log10(4)] * 2)
    words = said(figure)
    assert "Sparsest: dead.weight, 100 %; densest: conv.weight, 50 %" in words
    assert "all these layers together: 75 %" in words
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
