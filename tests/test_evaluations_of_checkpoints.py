"""Records and data of a fit stay when a checkpoint is evaluated, also by a new Trainer in the same folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import users
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

import lightning_fairprune as lfp

pytestmark = [
    # Trainers that only evaluate have no ModelCheckpoint, or other callbacks than the fit.
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used"),
    pytest.mark.filterwarnings("ignore:Experiment logs directory"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
]


class Data(users.Data):
    def predict_dataloader(self) -> Any:
        return self.test_dataloader()


MAKES: dict[str, Any] = {
    "data": lambda: lfp.DataPruning(
        0.3, 2, score=lfp.scores.el2n, keep="hard", quota=lfp.quotas.Minimax()
    ),
    "weights": lambda: lfp.WeightPruning(sparsity=0.8, start=1, end=3),
    "monitor": lambda: lfp.RecallMonitor(reference="fit_start", figures=False),
    "weighting": lfp.ClassWeighting,
    "offsets": lfp.RecallOffsets,
}
ALONE = [(name,) for name in MAKES]
SETS = [*ALONE, tuple(MAKES)]


def made(names: tuple[str, ...]) -> dict[str, Any]:
    return {name: MAKES[name]() for name in names}


def data_of(form: str) -> pl.LightningDataModule:
    return lfp.FairPruneDataModule(Data()) if form == "wrapper" else Data()


def trainer_of(callbacks: dict[str, Any], folder: Path, **options: Any) -> pl.Trainer:
    saves = ModelCheckpoint(folder / "c", "{epoch}-{step}", save_top_k=-1, save_last=True)
    logger = CSVLogger(folder, "log", "v")
    given = {"enable_checkpointing": True, "logger": logger} | options
    return users.trainer(callbacks=[*callbacks.values(), saves], **given)


def fit(callbacks: dict[str, Any], folder: Path, form: str = "plain", **options: Any) -> Any:
    pl.seed_everything(1, verbose=False)
    trainer, model = trainer_of(callbacks, folder, **options), users.WithLoss()
    trainer.fit(model, data_of(form))
    return trainer, model


def after_epoch(folder: Path, epoch: int) -> str:
    (path,) = (folder / "c").glob(f"epoch={epoch - 1}-*.ckpt")
    return str(path)


def left(trainer: pl.Trainer, callbacks: dict[str, Any], folder: Path) -> dict[str, Any]:
    """All that a fit left, but the evaluations of the monitor."""
    found: dict[str, Any] = {"reload": trainer.reload_dataloaders_every_n_epochs}
    if prune := callbacks.get("data"):
        found["data"] = [
            prune.selection,
            prune.quota,
            prune.history,
            prune.dynamics,
            prune.run.recalls.state_dict(),
            prune.state_dict(),
        ]
    if weights := callbacks.get("weights"):
        found["weights"] = [weights.masks, weights.history, weights.record, weights.state_dict()]
    if weighting := callbacks.get("weighting"):
        found["weighting"] = [weighting.weight, weighting.state_dict()]
    if monitor := callbacks.get("monitor"):
        found["reference"] = monitor.history.reference
    files = sorted(p for p in folder.rglob("*") if p.is_file() and "recalls" not in p.name)
    found["files"] = {p.name: p.read_bytes() for p in files if p.suffix != ".csv"}
    return {key: users.plain(value) for key, value in found.items()}


def evaluated(monitor: lfp.RecallMonitor) -> list[Any]:
    return [[*e[:4], e.counts.tp.tolist()] for e in monitor.history.evaluations]


@pytest.mark.parametrize("form", ["plain", "wrapper"])
@pytest.mark.parametrize("names", SETS, ids="-".join)
def test_an_earlier_checkpoint_changes_nothing(
    names: tuple[str, ...], form: str, tmp_path: Path
) -> None:
    callbacks = made(names)
    trainer, model = fit(callbacks, tmp_path, form)
    before = left(trainer, callbacks, tmp_path)
    monitor = callbacks.get("monitor")
    known = [] if monitor is None else evaluated(monitor)
    data = trainer.datamodule
    for path, epoch in ((after_epoch(tmp_path, 1), 1), (after_epoch(tmp_path, 3), 3), ("last", 4)):
        trainer.test(model, data, ckpt_path=path, verbose=False)
        trainer.validate(model, data, ckpt_path=path, verbose=False)
        trainer.predict(model, data, ckpt_path=path)
        assert left(trainer, callbacks, tmp_path) == before
        if monitor is not None:
            now = evaluated(monitor)
            assert now[: len(known)] == known
            again = next(row for row in known if row[0] == "val" and row[1] == epoch)
            (new,) = now[len(known) :]  # the fit has validated these weights itself
            assert new == ["test", *again[1:]]
            there = lfp.RecallHistory.load(tmp_path / "log" / "v")
            assert [[*e[:4], e.counts.tp.tolist()] for e in there.evaluations] == now
            known = now


@pytest.mark.parametrize("names", SETS, ids="-".join)
def test_a_new_trainer_with_new_callbacks(names: tuple[str, ...], tmp_path: Path) -> None:
    callbacks = made(names)
    fit(callbacks, tmp_path)
    files = left(users.trainer(), {}, tmp_path)["files"]
    for path, epoch in ((after_epoch(tmp_path, 1), 1), (after_epoch(tmp_path, 3), 3)):
        again = made(names)
        trainer, model = (
            trainer_of(again, tmp_path),
            users.WithLoss(),
        )  # the logger has the folder of the fit
        for _ in range(2):
            trainer.test(model, Data(), ckpt_path=path, verbose=False, weights_only=True)
        trainer.predict(model, Data(), ckpt_path=path)
        weights = torch.load(path, weights_only=True)["state_dict"]
        assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
        assert left(users.trainer(), {}, tmp_path)["files"] == files
        if "monitor" in names:
            assert again["monitor"].history.last("test").epoch == epoch
    if "monitor" in names:
        found = evaluated(callbacks["monitor"])
        there = lfp.RecallHistory.load(tmp_path / "log" / "v").evaluations
        assert [[*e[:4], e.counts.tp.tolist()] for e in there[:4]] == found
        tested = [(e.name, e.epoch, e.counts.tp.tolist()) for e in there[4:]]
        val = [found[epoch - 1] for epoch in (1, 1, 3, 3)]  # each once
        assert tested == [("test", row[1], row[4]) for row in val[1:3]]


@pytest.mark.parametrize("name", MAKES)
def test_a_checkpoint_of_a_fit_without_the_callback(name: str, tmp_path: Path) -> None:
    others = {other: MAKES[other]() for other in MAKES if other != name}
    fit(others, tmp_path)
    alone = made((name,))
    trainer = trainer_of(alone, tmp_path / "other")
    trainer.test(users.WithLoss(), Data(), ckpt_path=after_epoch(tmp_path, 3), verbose=False)
    if name == "monitor":
        (found,) = alone["monitor"].history.evaluations
        assert found[:4] == ("test", 3, 26, True)
    if name == "data":
        assert alone["data"].selection is None
    if name == "weights":
        assert alone["weights"].masks == {}


def test_weights_stay_those_of_the_tested_checkpoint(tmp_path: Path) -> None:
    callbacks = made(("monitor",))
    trainer, model = fit(callbacks, tmp_path)
    history = callbacks["monitor"].history
    trainer.test(ckpt_path="best", datamodule=Data(), verbose=False)
    trainer.test(model, Data(), ckpt_path=after_epoch(tmp_path, 2), verbose=False)
    trainer.test(model, Data(), verbose=False)  # the module still has them
    assert [e.epoch for e in callbacks["monitor"].history.of("test")] == [4, 2]  # once each
    assert callbacks["monitor"].history.evaluations[:4] == history.evaluations


@pytest.mark.parametrize("shown", [True, False])
def test_weights_alone(shown: bool, tmp_path: Path) -> None:
    monitor = lfp.RecallMonitor(figures=False)
    saves = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, save_weights_only=True)
    trainer = users.trainer(callbacks=[monitor, saves], enable_checkpointing=True)
    trainer.fit(users.WithLoss(), Data())
    if not shown:
        monitor = lfp.RecallMonitor(figures=False)
        trainer = users.trainer(callbacks=[monitor])
    for epoch in (2, 1):
        path = str(tmp_path / f"epoch={epoch}.ckpt")
        trainer.test(users.WithLoss(), Data(), ckpt_path=path, verbose=False)
        assert monitor.history.last("test")[:3] == ("test", epoch + 1, 11 * (epoch + 1))


CONFIG = """
seed_everything: 1
trainer:
  max_epochs: 4
  accelerator: cpu
  devices: 1
  enable_progress_bar: false
  enable_model_summary: false
  num_sanity_val_steps: 0
  callbacks:
  - class_path: lightning_fairprune.DataPruning
    init_args: {density: 0.3, warmup_epochs: 2}
  - class_path: lightning_fairprune.WeightPruning
    init_args: {sparsity: 0.8, start: 1, end: 3}
  - class_path: lightning_fairprune.RecallMonitor
    init_args: {reference: fit_start, figures: false}
  - class_path: lightning_fairprune.ClassWeighting
  - class_path: lightning_fairprune.RecallOffsets
    init_args: {max_average_loss: 0.02}
  - class_path: lightning.pytorch.callbacks.ModelCheckpoint
    init_args: {filename: "{epoch}", save_top_k: -1}
  logger:
    class_path: lightning.pytorch.loggers.CSVLogger
    init_args: {save_dir: FOLDER, name: log, version: VERSION}
"""


@pytest.mark.parametrize("version", ["v", None])
def test_the_cli_with_the_fits_own_config(
    version: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    config = tmp_path / "given.yaml"
    config.write_text(CONFIG.replace("FOLDER", str(tmp_path)).replace("VERSION", version or "null"))
    monkeypatch.setattr(sys, "argv", ["train"])
    cli: Any = LightningCLI(users.WithLoss, Data, args=["fit", "--config", str(config)])
    log = Path(cli.trainer.logger.log_dir)
    path = log / "checkpoints" / "epoch=1.ckpt"
    before, own = left(users.trainer(), {}, log), tmp_path / "own.yaml"
    own.write_bytes((log / "config.yaml").read_bytes())  # later commands may overwrite it
    for verb, name in (("test", "test"), ("validate", "val"), ("predict", None)):
        args = [verb, "--config", str(own), "--ckpt_path", str(path)]
        cli = LightningCLI(
            users.WithLoss, Data, args=args, save_config_kwargs={"overwrite": version is not None}
        )
        monitor = next(c for c in cli.trainer.callbacks if isinstance(c, lfp.RecallMonitor))
        if name is not None:
            assert monitor.history.last(name)[:3] == (name, 2, 22)
    after = left(users.trainer(), {}, log)
    after["files"] |= {"config.yaml": before["files"]["config.yaml"]}
    assert after == before
    there = lfp.RecallHistory.load(log).evaluations
    assert [e.epoch for e in there] == [1, 2, 3, 4] + ([2] if version else [])


def test_a_validation_on_other_data_is_added(tmp_path: Path) -> None:
    callbacks = made(("monitor",))
    trainer, model = fit(callbacks, tmp_path)
    known = evaluated(callbacks["monitor"])
    other = DataLoader(users.Blobs(60, seed=2), 20)
    trainer.validate(model, other, ckpt_path=after_epoch(tmp_path, 2), verbose=False)
    now = evaluated(callbacks["monitor"])
    assert now[:2] + now[3:] == known
    assert now[2][:3] == known[1][:3]
    assert now[2][4] != known[1][4]


def test_a_loaded_model_in_a_new_trainer_keeps_the_record_of_the_fit(tmp_path: Path) -> None:
    callbacks = made(("monitor",))
    fit(callbacks, tmp_path)
    model = users.WithLoss.load_from_checkpoint(after_epoch(tmp_path, 2), weights_only=True)
    trainer_of(made(("monitor",)), tmp_path).test(model, Data(), verbose=False)
    there = lfp.RecallHistory.load(tmp_path / "log" / "v")
    assert [(e.name, e.epoch) for e in there.evaluations] == [
        *(("val", epoch) for epoch in (1, 2, 3, 4)),
        ("test", 0),
    ]
