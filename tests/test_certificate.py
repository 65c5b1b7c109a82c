"""The sentence of the report on what no class lost, and its JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_fairprune.counts import Answers, ClassCounts
from lightning_fairprune.history import Evaluation, RecallHistory
from lightning_fairprune.report import _words, main
from lightning_fairprune.report._compare import Comparison, compare
from lightning_fairprune.report._export import markdown
from lightning_fairprune.report._json import json_text
from lightning_fairprune.report._read import read
from lightning_fairprune.statistics import loss_bounds, loss_bounds_from_counts

LABEL = torch.arange(3).repeat_interleave(torch.tensor([60, 60, 40]))


def right(seed: int, share: float = 0.8) -> Tensor:
    return torch.rand(len(LABEL), generator=torch.Generator().manual_seed(seed)) < share


def counts(answers: Tensor, *, known: bool = True, label: Tensor = LABEL) -> ClassCounts:
    tp, support = label[answers].bincount(minlength=3), label.bincount(minlength=3)
    return ClassCounts(tp, support, Answers.of(label, answers) if known else None)


def write(folder: Path, found: ClassCounts, seed: int | None = 0, **options: Any) -> Path:
    last = Evaluation("test", 3, 30, True, found)
    RecallHistory((last,), ("a", "b", "<b>c"), seed=seed, **options).save(folder / "fairprune")
    return folder


def compared(run: Path | list[Path], reference: Path | None, **options: Any) -> Comparison:
    runs = run if isinstance(run, list) else [run]
    named = [f"x={path}" for path in runs]
    return compare(read(named), [] if reference is None else read(str(reference)), **options)


def test_runs_that_know_their_answers_are_compared_by_them(tmp_path: Path) -> None:
    before, now = counts(right(0)), counts(right(1))
    run, reference = write(tmp_path / "run", now), write(tmp_path / "full", before)
    found = compared(run, reference)
    (one,) = found.certificates
    changed = now.changes(before)
    assert changed is not None
    expected = loss_bounds(*changed, now.support)
    assert one.bounds.paired
    assert one.bounds.worst == expected.worst
    assert torch.equal(one.bounds.each, expected.each)
    (sentence,) = _words.certified(found)
    assert sentence.startswith("With 95 % confidence no class lost more than ")
    assert sentence.endswith(" points against the reference (40 to 60 samples a class).")
    assert sentence in markdown(found)


@pytest.mark.parametrize("how", ["unknown", "order", "number"])
def test_without_pairs_the_counts_decide(tmp_path: Path, how: str) -> None:
    now, before = counts(right(1), known=how != "unknown"), counts(right(0))
    if how == "order":
        before = counts(right(0).flip(0), label=LABEL.flip(0))
    if how == "number":
        before = counts(right(0)[1:], label=LABEL[1:])
    (one,) = compared(write(tmp_path / "run", now), write(tmp_path / "full", before)).certificates
    support = None if how == "unknown" else before.support
    expected = loss_bounds_from_counts(now.tp, now.support, before.tp, support)
    assert not one.bounds.paired
    assert one.bounds.worst == expected.worst
    assert (
        "which of them changed is not known"
        in _words.certified(compared(tmp_path / "run", tmp_path / "full"))[0]
    )


def test_the_reference_that_a_run_has_kept_is_one(tmp_path: Path) -> None:
    before, now = counts(right(0)), counts(right(1))
    run = write(tmp_path / "run", now, reference={"test": before})
    (one,) = compared(run, None).certificates
    assert one.reference is None
    assert one.bounds.paired
    assert compared(write(tmp_path / "alone", now), None).certificates == ()


@pytest.mark.parametrize(("seeds", "pairs"), [((0, 1), 2), ((0, None), 4)])
def test_every_pair_has_a_sentence(tmp_path: Path, seeds: tuple[Any, ...], pairs: int) -> None:
    runs = [write(tmp_path / f"run{i}", counts(right(i)), seed) for i, seed in enumerate(seeds)]
    for i in range(2):
        write(tmp_path / "full" / str(i), counts(right(5 + i)), i)
    found = compared(runs, tmp_path / "full")
    assert len(found.certificates) == pairs
    sentences = _words.certified(found)
    assert len(set(sentences)) == pairs
    assert all("run0" in s or "run1" in s for s in sentences)
    assert (
        _words.certified(found, 1)[-1] == f"{pairs - 1} more pair{'s' * (pairs > 2)} on the page."
    )


def test_what_is_said_is_rounded_so_that_it_holds(tmp_path: Path) -> None:
    all_right, none = torch.ones(160, dtype=torch.bool), torch.zeros(160, dtype=torch.bool)
    run, reference = write(tmp_path / "run", counts(all_right)), write(tmp_path / "f", counts(none))
    found = compared(run, reference)
    bound = found.certificates[0].bounds.worst
    assert bound < 0
    (sentence,) = _words.certified(found)
    said = float(sentence.split("at least ")[1].split()[0]) / 100
    assert -bound - 0.001 < said <= -bound
    other = compared(reference, run)
    said = float(_words.certified(other)[0].split("more than ")[1].split()[0]) / 100
    assert said >= other.certificates[0].bounds.worst


def test_a_low_level_has_none(tmp_path: Path) -> None:
    run, reference = (write(tmp_path / name, counts(right(0))) for name in ("run", "full"))
    assert compared(run, reference, level=0.4).certificates == ()
    assert compared(run, reference, level=0.9).certificates[0].bounds.level == 0.9


def test_the_command_prints_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, reference = (
        write(tmp_path / "run", counts(right(1))),
        write(tmp_path / "f", counts(right(0))),
    )
    arguments = [f"x={run}", "--reference", str(reference), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (one,) = found["certificates"]
    expected = compared(run, reference)
    assert found == json.loads(json_text(expected))
    assert one["no_class_lost_more_than"] == expected.certificates[0].bounds.worst
    assert one["sentence"] == _words.certified(expected)[0]
    assert [c["class"] for c in one["classes"]] == ["a", "b", "<b>c"]
    assert all(c["lost_at_most"] >= c["loss"] for c in one["classes"])
    # One run has no interval, and JSON has no NaN.
    assert found["settings"][1]["worst"]["low"] is None
    page = (tmp_path / "out" / "index.html").read_text()
    assert one["sentence"] in page
