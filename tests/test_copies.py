"""Copies of callbacks: settings and results, and nothing of the fit."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import users

import lightning_fairprune as lfp

COPIES: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda callback: pickle.loads(pickle.dumps(callback)),
    "deepcopy": copy.deepcopy,
}


def data_pruning(**options: Any) -> lfp.DataPruning:
    return lfp.DataPruning(
        0.3, 2, score=lfp.scores.el2n, keep="hard", quota=lfp.quotas.Minimax(), **options
    )


MAKES: dict[str, Callable[[], pl.Callback]] = {
    "data": data_pruning,
    "restart": lambda: data_pruning(after="restart"),
    "weights": lambda: lfp.WeightPruning(sparsity=0.5, start=1, end=2),
    "monitor": lambda: lfp.RecallMonitor(reference="fit_start"),
    "weighting": lfp.ClassWeighting,
    "offsets": lfp.RecallOffsets,
}


def fit(callback: pl.Callback, **options: Any) -> users.Model:
    pl.seed_everything(1, verbose=False)
    model = users.WithLoss()
    users.trainer(callbacks=[callback], **options).fit(model, users.Data())
    return model


RESULTS = (
    *("selection", "quota", "dynamics", "record", "pruned", "masks"),
    *("history", "counts", "weight", "offsets"),
)


def results(callback: Any) -> dict[str, Any]:
    found = {name: getattr(callback, name) for name in RESULTS if hasattr(callback, name)}
    return {name: repr(users.plain(value)) for name, value in found.items()}


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("name", MAKES)
def test_a_copy_has_the_settings_and_results_and_fits_alike(name: str, way: str) -> None:
    used = MAKES[name]()
    fresh = COPIES[way](used)
    first = fit(used)
    assert results(used)
    again = COPIES[way](used)
    assert results(again) == results(used)
    assert again.settings == again.settings
    for other in (fresh, again):
        second = fit(other)
        assert results(other) == results(used)
        for a, b in zip(first.parameters(), second.parameters(), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("name", MAKES)
def test_a_copy_takes_neither_model_nor_data(name: str) -> None:
    class Huge(users.Data):
        def setup(self, stage: str) -> None:
            super().setup(stage)
            self.train.ballast = torch.zeros(10**6)

    used = MAKES[name]()
    model = users.WithLoss()
    model.register_buffer("ballast", torch.zeros(10**6))
    users.trainer(callbacks=[used]).fit(model, Huge())
    assert len(pickle.dumps(used)) < 10**5


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("name", MAKES)
def test_a_copy_in_the_middle_of_a_fit_changes_nothing(name: str, way: str) -> None:
    class Copies(pl.Callback):
        copied: Any = None

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step in (5, 11, 14, 24):
                self.copied = COPIES[way](trainer.callbacks[0])

    alone, watched, copies = MAKES[name](), MAKES[name](), Copies()
    fit(alone)
    pl.seed_everything(1, verbose=False)
    users.trainer(callbacks=[watched, copies]).fit(users.WithLoss(), users.Data())
    assert results(watched) == results(alone)
    fit(copies.copied)
    assert results(copies.copied) == results(alone)


@pytest.mark.parametrize("name", MAKES)
def test_a_copy_can_validate_and_save(name: str, tmp_path: Path) -> None:
    used = MAKES[name]()
    fit(used)
    again = copy.deepcopy(used)
    trainer = users.trainer(callbacks=[again])
    trainer.validate(users.WithLoss(), users.Data(), verbose=False)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    kept = {k: v for k, v in results(again).items() if k in ("selection", "masks", "weight")}
    assert kept.items() <= results(used).items()


SPAWNS = """
import sys
import users
from lightning.pytorch.loggers import CSVLogger
import lightning_fairprune as lfp

if __name__ == "__main__":
    strategy, folder = sys.argv[1:]
    used = [lfp.DataPruning(0.3, 2), lfp.WeightPruning(sparsity=0.5, start=1, end=2)]
    trainer = users.trainer(callbacks=used, strategy=strategy, logger=CSVLogger(folder))
    trainer.fit(users.Model(), users.Data())
    print(used[0].selection, len(used[1].masks))
"""


@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork"])
def test_a_fit_in_processes_of_its_own_says_where_its_results_are(
    strategy: str, tmp_path: Path
) -> None:
    script = tmp_path / "spawns.py"
    script.write_text(SPAWNS)
    root, tests = Path(lfp.__file__).parents[1], Path(__file__).parent
    path = os.pathsep.join([str(root), str(tests)])
    done = subprocess.run(
        [sys.executable, str(script), strategy, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "None 0"
    folder = next(tmp_path.glob("**/fairprune"))
    said = " ".join(done.stderr.split())
    assert "DataPruning has its results in the processes that DDPStrategy started" in said
    assert "`masks`, `history` stay as they were before" in said
    assert said.count(f"files in {str(folder)!r}") == 2
    assert len(lfp.PruningRecord.load(folder).selection) == 31
