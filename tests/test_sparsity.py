"""What weight pruning did in a run, written and read back."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from lightning_fairprune._files import write_json
from lightning_fairprune.records.sparsity_record import PruneStep, SparsityRecord

FIRST = PruneStep(2, 100, 0.5, 0.5, {"conv.weight": 0.25, "fc.weight": 0.75})
LAST = PruneStep(4, 200, 0.9, 0.9001, {"conv.weight": 0.8, "fc.weight": 0.95})


def record(*steps: PruneStep) -> SparsityRecord:
    settings = {"criterion": "magnitude", "sparsity": 0.9, "exclude": ["head.*"], "rewind": None}
    return SparsityRecord(settings, steps)


@pytest.mark.parametrize("where", [".", "fairprune", "fairprune/sparsity.json"])
def test_what_is_saved_is_loaded(tmp_path: Path, where: str) -> None:
    record(FIRST, LAST).save(tmp_path / "fairprune")
    found = SparsityRecord.load(tmp_path / where)
    assert found == record(FIRST, LAST)
    assert found.steps[1].layers == LAST.layers
    assert found != record(FIRST)
    assert [p.name for p in (tmp_path / "fairprune").iterdir()] == ["sparsity.json"]


def test_a_record_without_prunings_and_layers_without_weights_survive(tmp_path: Path) -> None:
    record().save(tmp_path)
    assert SparsityRecord.load(tmp_path) == record()
    record(FIRST._replace(layers={"empty": math.nan, "fc": 0.5})).save(tmp_path)
    text = (tmp_path / "sparsity.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["steps"][0]["layers"]["empty"] is None
    layers = SparsityRecord.load(tmp_path).steps[0].layers
    assert math.isnan(layers["empty"])
    assert layers["fc"] == 0.5


def test_the_sparsity_in_force() -> None:
    found = record(FIRST, LAST)
    assert [found.at(step) for step in (0, 99, 100, 199, 200, 10**9)] == [
        0.0,
        0.0,
        0.5,
        0.5,
        0.9001,
        0.9001,
    ]
    assert record().at(5) == 0.0
    # Of two prunings after one step, the last counts; one before training is there from the start.
    twice = record(FIRST._replace(epoch=0, step=0), LAST._replace(step=0))
    assert twice.at(0) == 0.9001


def test_it_is_printed_on_one_line() -> None:
    assert repr(record(FIRST, LAST)) == "SparsityRecord(prunings=2, sparsity=0.9001)"
    assert repr(record()) == "SparsityRecord(prunings=0, sparsity=0)"


def test_contradictions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`total` must be a sparsity in \[0, 1\], got 90 of pr"):
        record(FIRST._replace(total=90))
    with pytest.raises(ValueError, match=r"`target` must be .* got nan of pruning 2"):
        record(FIRST, LAST._replace(target=math.nan))
    with pytest.raises(ValueError, match=r"got pruning 2 after 100 optimiser steps.*after 200"):
        record(LAST, FIRST)


def test_parts_that_are_wrong_are_refused(tmp_path: Path) -> None:
    record(FIRST).save(tmp_path)
    file = tmp_path / "sparsity.json"
    whole = json.loads(file.read_text())
    whole = {name: whole[name] for name in ("settings", "steps")}
    steps = whole["steps"]
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"steps": None}, "it is damaged"),
        ({"settings": 3}, "it is damaged"),
        ({"steps": [{**steps[0], "total": None}]}, "it is damaged"),
        ({"steps": [{**steps[0], "total": 1.5}]}, "it is damaged .*must be a sparsity"),
        ({"steps": [{**steps[0], "layers": [0.5]}]}, "it is damaged"),
        ({"steps": [{}]}, "it is damaged"),
    ]
    for changes, message in wrong:
        write_json(file, "SparsityRecord", {**whole, **changes})
        with pytest.raises(ValueError, match=message):
            SparsityRecord.load(tmp_path)
