"""The section of the report on what the layers compute, and its figure."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from test_figures import check_text, said
from test_report import Page

from lightning_fairprune import figures, representation
from lightning_fairprune.counts import ClassCounts
from lightning_fairprune.history import Evaluation, RecallHistory
from lightning_fairprune.report import _build, report
from lightning_fairprune.report._compare import compare
from lightning_fairprune.report._read import read

EVIL = "</td><script>alert(1)</script>"
TITLE = "What the layers compute"


def make(folder: Path, seed: int, layers: dict[str, float] | None, measure: str = "CKA") -> Path:
    counts = ClassCounts(torch.tensor([9 - seed, 5]), torch.tensor([10, 10]))
    last = Evaluation("test", 1, 10, layers is not None, counts)
    RecallHistory((last,), ("cat", "dog"), seed=seed).save(folder / "fairprune")
    if layers is not None:
        representation.save(folder, layers, measure=measure)
    return folder


def write(root: Path, *runs: Path | str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Returns the page, for which only the figures of this section are drawn."""
    monkeypatch.setattr(_build, "drawings", lambda comparison: [])
    report(list(runs), out=root / "out")
    return (root / "out" / "index.html").read_text()


def text_of(html: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


def section_of(page: str) -> str:
    return page.split(f">{TITLE}</h2>")[1].split("</section>")[0]


def test_the_page_shows_means_over_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed, value in enumerate((0.5, 0.6)):
        make(tmp_path / "a" / f"s{seed}", seed, {"conv": 0.9, EVIL: value, "flat": math.nan})
    make(tmp_path / "a" / "s2", 2, None)
    make(tmp_path / "b" / "s0", 0, {"conv": 0.25, "fc": 1.0})
    runs = [f"<b>few={tmp_path / 'a'}", f"many={tmp_path / 'b'}"]
    page = write(tmp_path, *runs, monkeypatch=monkeypatch)
    assert "script" not in dict(Page(page).tags)
    assert page.count(f'<a href="#what-the-layers-compute">{TITLE}</a>') == 1
    titles = re.findall(r"<h2 [^>]*>(.*?)</h2>", page)
    assert titles[titles.index(TITLE) + 1] == "How to read this page"
    section = section_of(page)
    rows = [text_of(row) for row in re.findall(r"<tr>.*?</tr>", section)]
    assert rows == [
        "layer &lt;b&gt;few many",
        "conv 0.90 ±0.00 0.25",
        "&lt;/td&gt;&lt;script&gt;alert(1)&lt;/script&gt; 0.55 ±0.64 –",
        "flat – –",
        "fc – 1.00",
    ]
    assert "&lt;b&gt;few: 2 of 3 runs were compared." in section
    assert "many: " not in text_of(section)
    assert "Mean over the runs." in section
    assert section.count("<img ") == 1
    assert {p.name for p in (tmp_path / "out").glob("*.png")} == {"similarity.png"}


def test_measures_are_not_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "a", 0, {"fc": 0.5}, "linear CKA")
    make(tmp_path / "b", 0, {"fc": 0.7}, "SVCCA <mean>")
    page = write(tmp_path, f"a={tmp_path / 'a'}", f"b={tmp_path / 'b'}", monkeypatch=monkeypatch)
    section = section_of(page)
    rows = [text_of(row) for row in re.findall(r"<tr>.*?</tr>", section)]
    assert rows == ["layer a", "fc 0.50", "layer b", "fc 0.70"]
    assert "SVCCA &lt;mean&gt; as a table" in section
    names = {p.name for p in (tmp_path / "out").glob("*.png")}
    assert names == {"similarity_1.png", "similarity_2.png"}


def test_without_the_file_there_is_no_section(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = write(tmp_path, make(tmp_path / "run", 0, None), monkeypatch=monkeypatch)
    assert TITLE not in page
    assert not list((tmp_path / "out").glob("*.png"))


def test_files_are_found_next_to_the_recalls_and_told_when_damaged(tmp_path: Path) -> None:
    run = make(tmp_path / "run", 0, {"fc": 0.5})
    (found,) = read([run])
    assert found.similarity == ({"fc": 0.5}, "CKA")
    (same,) = read([run / "fairprune"])
    assert same.similarity == found.similarity
    assert compare([found], []).runs[0].similarity is found.similarity
    (run / "fairprune" / "similarity.json").write_text("{")
    with pytest.raises(ValueError, match=r"similarity.json' cannot be loaded: it is damaged"):
        read([run])


def made_up(layers: int, labels: int) -> dict[str, dict[str, float]]:
    generator = torch.Generator().manual_seed(layers)
    stem = "module.backbone.encoder.layer"
    names = [f"{stem}{i // 7}.{i % 7}.attention.conv{i}" for i in range(layers)]
    values = (1 - 0.6 * torch.rand(labels, layers, generator=generator)).tolist()
    each = (dict(zip(names, one, strict=True)) for one in values)
    return {f"undecayed pruning, sparsity 0.{9 - i}": one for i, one in enumerate(each)}


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize(("layers", "labels"), [(1, 1), (3, 2), (54, 9), (200, 3)])
def test_the_figure_can_be_read(layers: int, labels: int, narrow: bool) -> None:
    figure = figures.similarity(made_up(layers, labels), narrow=narrow)
    check_text(figure)
    width, height = figure.get_size_inches()
    assert width == (4.2 if narrow else 9.0)
    assert height < 14
    axis = figure.axes[0]
    assert 1 <= len(axis.get_yticklabels()) <= 40
    assert axis.get_yticklabels()[0].get_text().endswith("conv0")


def test_the_figure_draws_what_it_is_given() -> None:
    values = {"a": {"conv": 0.9, "": 0.2}, "b": {"conv": 0.5, "fc": -0.1, "flat": math.nan}}
    figure = figures.similarity(values, measure="debiased CKA")
    check_text(figure)
    axis = figure.axes[0]
    first, second = (line for line in axis.lines if line.get_marker() == "o")
    assert first.get_xdata().tolist() == [0.9, 0.2]
    assert first.get_ydata().tolist() == [0, 1]
    assert second.get_xdata().tolist() == pytest.approx([0.5, -0.1, math.nan], nan_ok=True)
    assert second.get_ydata().tolist() == [0, 2, 3]
    names = [label.get_text() for label in axis.get_yticklabels()]
    assert names == ["conv", "the network", "fc", "flat"]
    assert axis.yaxis_inverted()
    low, high = axis.get_xlim()
    assert low < -0.1 < 1 < high
    assert "Least like the dense network: fc of b, debiased CKA -0.10" in said(figure)
    assert "Without a value, as their output is constant: flat." in said(figure)


def test_without_a_value_nothing_is_drawn() -> None:
    figure = figures.similarity({"a": {"fc": math.nan}})
    check_text(figure)
    assert not figure.axes
    assert "There is nothing to compare" in said(figure)


def test_lines_of_many_labels_can_be_told_apart() -> None:
    figure = figures.similarity(made_up(3, 20))
    styles = [
        (line.get_color(), line.get_linestyle(), str(line._dash_pattern))
        for line in figure.axes[0].lines
        if line.get_marker() == "o"
    ]
    assert len(set(styles)) == 20


def test_the_figure_needs_layers_and_similarities() -> None:
    for values in ({}, {"a": {}}, {"a": {"fc": 1.0}, "b": {}}):
        with pytest.raises(ValueError, match=r"`values` must have at least one label with"):
            figures.similarity(values)
    with pytest.raises(ValueError, match=r"in \[-1, 1\] or NaN, got 1.2 of layer 'fc' of 'a'"):
        figures.similarity({"a": {"fc": 1.2}})
