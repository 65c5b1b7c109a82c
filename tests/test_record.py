"""What pruning did, written and read back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lightning_fairprune import select
from lightning_fairprune.decision import Estimate
from lightning_fairprune.record import PruningRecord

TARGET = torch.tensor([0, 0, 1, 1, 1, -1])


def record(score: bool = True) -> PruningRecord:
    chosen = select(TARGET, torch.tensor([1, 2]), seed=4)
    values = torch.arange(6.0) if score else None
    history = (
        Estimate(3, torch.tensor([0.5, float("nan")]).double(), torch.tensor([2, 1])),
        Estimate(5, None, torch.tensor([1, 2])),
        Estimate(6, None, None),
    )
    return PruningRecord(chosen, TARGET, values, history, {"density": 0.5, "quota": "drop"})


@pytest.mark.parametrize("score", [True, False])
@pytest.mark.parametrize("where", [".", "fairprune", "fairprune/pruning.safetensors"])
def test_what_is_saved_is_loaded(tmp_path: Path, where: str, score: bool) -> None:
    saved = record(score)
    saved.save(tmp_path / "fairprune")
    read = PruningRecord.load(tmp_path / where)
    assert torch.equal(read.selection.indices, saved.selection.indices)
    assert torch.equal(read.selection.quota, torch.tensor([1, 2]))
    assert (read.selection.keep, read.selection.seed) == ("random", 4)
    assert torch.equal(read.target, TARGET)
    assert (read.score is not None) == score
    if saved.score is not None:
        assert torch.equal(read.score, saved.score)  # type: ignore[arg-type]
    assert [estimate.epoch for estimate in read.history] == [3, 5, 6]
    assert torch.equal(read.history[0].quota, torch.tensor([2, 1]))  # type: ignore[arg-type]
    assert read.history[0].recall.isnan().tolist() == [False, True]  # type: ignore[union-attr]
    assert read.history[1].recall is None
    assert read.history[2].quota is None
    assert read.settings == {"density": 0.5, "quota": "drop"}


def test_dropped_is_the_rest() -> None:
    both = torch.cat([record().selection.indices, record().dropped]).sort().values
    assert both.tolist() == [0, 1, 2, 3, 4, 5]


def test_a_reader_finds_the_numbers_in_json(tmp_path: Path) -> None:
    record().save(tmp_path)
    content = json.loads((tmp_path / "pruning.json").read_text())
    assert content["quota"] == [1, 2]
    assert content["sizes"] == [2, 3]
    assert (content["kept"], content["num_samples"]) == (3, 6)
    assert content["settings"]["density"] == 0.5


def test_bad_input(tmp_path: Path) -> None:
    chosen = record().selection
    with pytest.raises(ValueError, match=r"`target` must be \[6\].* got \[5\]"):
        PruningRecord(chosen, TARGET[:5])
    with pytest.raises(ValueError, match=r"`score` must be \[6\].* got \[1\]"):
        PruningRecord(chosen, TARGET, torch.zeros(1))
    with pytest.raises(FileNotFoundError, match="no file"):
        PruningRecord.load(tmp_path)
    chosen.save(tmp_path / "pruning.safetensors")
    with pytest.raises(ValueError, match=r"must be written by `PruningRecord\.save`"):
        PruningRecord.load(tmp_path)
    record().save(tmp_path)
    whole = (tmp_path / "pruning.safetensors").read_bytes()
    (tmp_path / "pruning.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cut short"):
        PruningRecord.load(tmp_path)
