"""The section of the report on labels that look wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_fairprune import PruningRecord
from lightning_fairprune.label_errors import LabelErrors
from lightning_fairprune.report import report

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")
pytest.importorskip("scipy")
pytest.importorskip("PIL.Image")
from test_report import Images, make

TITLE = "Labels that look wrong"


def run(root: Path, suspects: list[int] | None, names: tuple[str, ...] | None) -> Path:
    """A pruned run of four classes with ten samples each, whose class 1 has suspects of class 3."""
    folder = make(root / "run", [80, 70, 60, 90], settings={"density": 0.4}, names=names)
    if suspects is not None:
        ids = torch.tensor(suspects, dtype=torch.int64)
        ten = torch.full((4,), 10)
        found = LabelErrors(ten, ten, ids, ids * 0 + 1, ids * 0 + 3)
        replace(PruningRecord.load(folder), label_errors=found).save(folder / "fairprune")
    return folder


def texts(folder: Path, out: Path, dataset: Any = None) -> tuple[str, str]:
    report(folder, out=out, dataset=dataset)
    return (out / "index.html").read_text(), (out / "summary.md").read_text()


def test_doubtful_classes_are_named_and_shown(tmp_path: Path) -> None:
    names = ("dog", "<cat>", "ship", "car")
    folder = run(tmp_path, [17, 12, 15, 11, 19], names)
    page, summary = texts(folder, tmp_path / "out", Images())
    told = "about 50 % of its labels look wrong (24 to 76 %), most of these like car"
    assert TITLE in page
    assert told in page
    assert "<h4>&lt;cat&gt;</h4>" in page
    assert page.index('alt="looks like car: sample 17"') < page.index("looks like car: sample 12")
    assert f"cat>: {told}" in summary

    plain, _ = texts(folder, tmp_path / "plain")
    assert told in plain
    assert "looks like car: sample" not in plain


@pytest.mark.parametrize("suspects", [[], [12]])
def test_no_class_is_named_for_what_chance_gives(tmp_path: Path, suspects: list[int]) -> None:
    page, summary = texts(run(tmp_path, suspects, None), tmp_path / "out", Images())
    for text in (page, summary):
        assert "No class has labels that look worse than those of the others." in text
        assert "look wrong (" not in text


def test_runs_without_an_estimate_have_no_section(tmp_path: Path) -> None:
    page, summary = texts(run(tmp_path, None, None), tmp_path / "out", Images())
    assert TITLE not in page
    assert "Labels" not in summary
