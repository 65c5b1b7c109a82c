"""Records say which training they are of, and two trainings in one folder are noticed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import users
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from users import Data, Model

import lightning_fairprune as lfp
from lightning_fairprune.report._check import oddities
from lightning_fairprune.report._read import read

RECORDS = (lfp.RecallHistory, lfp.PruningRecord, lfp.SparsityRecord)


def fit(folder: Path, *callbacks: Any, ckpt: Path | None = None, epochs: int = 4) -> Any:
    logger = CSVLogger(folder, name="", version="run")
    saved = ModelCheckpoint(folder / "ckpt", save_last=True, every_n_epochs=1, save_top_k=-1)
    trainer = users.trainer(
        callbacks=[*callbacks, saved], logger=logger, max_epochs=epochs, enable_checkpointing=True
    )
    trainer.fit(Model(), datamodule=Data(), ckpt_path=None if ckpt is None else str(ckpt))
    return trainer


def data() -> lfp.DataPruning:
    return lfp.DataPruning(0.4, 2)


def monitor() -> lfp.RecallMonitor:
    return lfp.RecallMonitor(figures=False)


@pytest.mark.filterwarnings("ignore:Experiment logs directory", "ignore:Checkpoint directory")
def test_all_records_of_a_training_and_its_resumption_name_it(tmp_path: Path) -> None:
    weights = lfp.WeightPruning(sparsity=0.5, start=1, end=2)
    fit(tmp_path, data(), monitor(), weights)
    found = {kind.load(tmp_path / "run").training for kind in RECORDS}
    (name,) = found
    assert re.fullmatch(r"\d{8}-[0-9a-f]{8}", name)
    weights = lfp.WeightPruning(sparsity=0.5, start=1, end=2)
    resumed = sorted((tmp_path / "ckpt").glob("epoch=2*.ckpt"))[0]
    fit(tmp_path, data(), monitor(), weights, ckpt=resumed)
    assert {kind.load(tmp_path / "run").training for kind in RECORDS} == {name}
    (run,) = read(tmp_path / "run")
    assert run.trainings == {name: "recalls, data pruning, weight pruning"}


@pytest.mark.filterwarnings("ignore:Experiment logs directory", "ignore:Checkpoint directory")
def test_two_trainings_in_one_folder_are_noticed(tmp_path: Path) -> None:
    fit(tmp_path, data(), monitor())
    first = lfp.PruningRecord.load(tmp_path / "run").training
    said = rf"has records of another training than this one.*pruning\.safetensors \({first}\)"
    with pytest.warns(UserWarning, match=said) as told:
        fit(tmp_path, monitor())
    assert sum("another training" in str(warning.message) for warning in told) == 1
    second = lfp.RecallHistory.load(tmp_path / "run").training
    assert second not in (first, None)
    (run,) = read(tmp_path / "run")
    assert run.trainings == {second: "recalls", first: "data pruning"}
    (note,) = [n for n in oddities("a", [run], "val", 4) if "trainings" in n]
    assert f"2 trainings, which do not belong together: recalls of {second} and data" in note


def test_records_of_earlier_releases_have_no_training(tmp_path: Path) -> None:
    lfp.SparsityRecord({}, ()).save(tmp_path)
    assert lfp.SparsityRecord.load(tmp_path).training is None
    assert lfp.SparsityRecord({}, (), "a") == lfp.SparsityRecord({}, ())
