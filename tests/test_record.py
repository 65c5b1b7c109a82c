"""What pruning did, written and read back."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import users
from lightning.pytorch.loggers import CSVLogger

import lightning_fairprune as lfp
from lightning_fairprune import select
from lightning_fairprune.records.pruning_record import PruningRecord
from lightning_fairprune.records.settings import name_of
from lightning_fairprune.selection.decision import Estimate

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


def test_bad_input() -> None:
    chosen = record().selection
    with pytest.raises(ValueError, match=r"`target` must be \[6\].* got \[5\]"):
        PruningRecord(chosen, TARGET[:5])
    with pytest.raises(ValueError, match=r"`score` must be \[6\].* got \[1\]"):
        PruningRecord(chosen, TARGET, torch.zeros(1))


def fit(tmp_path: Path, **options: Any) -> lfp.DataPruning:
    prune = lfp.DataPruning(0.5, 1, seed=3, **options)
    logger = CSVLogger(tmp_path, name="", version="run")
    trainer = users.trainer(callbacks=[prune], max_epochs=3, logger=logger)
    trainer.fit(users.Model(), users.Data(n=53, batch_size=8))
    return prune


@pytest.mark.parametrize("score", [None, lfp.scores.el2n])
def test_a_fit_leaves_its_record_next_to_the_log(tmp_path: Path, score: Any) -> None:
    prune = fit(tmp_path, score=score, keep="random" if score is None else "hard")
    read = PruningRecord.load(tmp_path / "run")
    assert torch.equal(read.selection.indices, prune.selection.indices)
    assert torch.equal(read.target, users.Blobs(53).y)
    assert len(read.history) == len(prune.history)
    assert read.settings["score"] == (None if score is None else "el2n")
    assert read.settings["quota"] == "drop"
    if score is not None:
        assert torch.equal(read.score, score(prune.dynamics).float())  # type: ignore[arg-type]


def test_an_interrupted_fit_has_left_its_first_decision(tmp_path: Path) -> None:
    class Stop(pl.Callback):
        def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
            if trainer.current_epoch == 2:
                raise RuntimeError("stopped")

    prune = lfp.DataPruning(0.5, 1)
    logger = CSVLogger(tmp_path, name="", version="run")
    trainer = users.trainer(callbacks=[prune, Stop()], max_epochs=3, logger=logger)
    with pytest.raises(RuntimeError, match="stopped"):
        trainer.fit(users.Model(), users.Data(n=53, batch_size=8))
    assert PruningRecord.load(tmp_path / "run").history[0].epoch == 0


def test_nothing_is_recorded_before_the_decision() -> None:
    assert lfp.DataPruning(0.5, 1).record is None


class Plain:
    def __call__(self, sizes: Any, budget: int) -> Any: ...


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, None),
        ("place", "place"),
        (2, 2),
        (lfp.quotas.drop, "drop"),
        (partial(lfp.quotas.drop, cap=[3, 4]), "drop(cap=[3, 4])"),
        (lfp.quotas.Minimax(), "Minimax(step=1, leak=0.1, worst=0.5)"),
        (Plain(), "Plain()"),
    ],
)
def test_functions_have_names_that_do_not_change(value: Any, text: Any) -> None:
    assert name_of(value) == text
