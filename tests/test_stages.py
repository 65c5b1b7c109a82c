"""`validate`, `test` and `predict` with a checkpoint, after a fit and in a new Trainer."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import users
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

import lightning_fairprune as lfp
from lightning_fairprune.history import RecallHistory

NAMES = ("data", "weights", "monitor", "weighting")
STAGES = ("validate", "test", "predict")
STEPS = {1: 11, 2: 22, 3: 26, 4: 30}
pytestmark = pytest.mark.filterwarnings(
    "ignore:Be aware that when using `ckpt_path`", "ignore:nothing was trained on the kept samples"
)


class Data(users.Data):
    def predict_dataloader(self) -> Any:
        return self.val_dataloader()


def callbacks() -> dict[str, Any]:
    return {
        "data": lfp.DataPruning(0.3, 2),
        "weights": lfp.WeightPruning(sparsity=0.5, start=2, end=3),
        "monitor": lfp.RecallMonitor(figures=False),
        "weighting": lfp.ClassWeighting(),
    }


def trainer(used: dict[str, Any], folder: Path, *more: pl.Callback, **options: Any) -> pl.Trainer:
    each = [*used.values(), *more]
    options |= {"logger": CSVLogger(folder), "enable_checkpointing": bool(more)}
    return users.trainer(callbacks=each, **options)


def saves(folder: Path) -> ModelCheckpoint:
    name = {"filename": "{epoch}", "save_top_k": -1, "save_last": True}
    return ModelCheckpoint(folder / "saved", monitor="val_loss", **name)


def fit(folder: Path, names: tuple[str, ...] = NAMES) -> tuple[pl.Trainer, dict[str, Any]]:
    pl.seed_everything(1, verbose=False)
    used = {name: callback for name, callback in callbacks().items() if name in names}
    t = trainer(used, folder, saves(folder))
    t.fit(users.WithLoss(), datamodule=Data())
    return t, used


def run(t: pl.Trainer, stage: str, path: Any, model: Any = None) -> Any:
    silent = {} if stage == "predict" else {"verbose": False}
    data = {"datamodule": Data()}
    return getattr(t, stage)(
        users.WithLoss() if model is None else model, **data, ckpt_path=path, **silent
    )


def left(used: dict[str, Any]) -> dict[str, Any]:
    """What the fit left in the callbacks, without evaluations of other stages."""
    found: dict[str, Any] = {}
    if "data" in used:
        data = used["data"]
        found["data"] = (data.selection.indices.tolist(), data.quota.tolist(), repr(data.history))
        found["dynamics"] = data.dynamics.target.tolist()
    if "weights" in used:
        masks = used["weights"].masks
        found["masks"] = {name: mask.tolist() for name, mask in masks.items()}
        found["prunings"] = repr(used["weights"].history)
    if "weighting" in used:
        found["weight"] = used["weighting"].weight.tolist()
    return found


def files(folder: Path) -> dict[str, str]:
    """What is on the disk, except for recalls and metrics, which get lines."""
    every = (path for path in (folder / "lightning_logs").rglob("*") if path.is_file())
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in every
        if path.stem not in ("recalls", "metrics", "hparams")
    }


def evaluations(monitor: Any, name: str) -> list[tuple[int, int, bool]]:
    return [(e.epoch, e.step, e.pruned) for e in monitor.history.of(name)]


OF_THE_FIT = [(1, 11, False), (2, 22, True), (3, 26, True), (4, 30, True)]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("names", [NAMES, *((name,) for name in NAMES)], ids="-".join)
def test_a_stage_after_a_fit_changes_nothing_that_the_fit_left(
    names: tuple[str, ...], stage: str, tmp_path: Path
) -> None:
    t, used = fit(tmp_path, names)
    before, on_disk, reload = left(used), files(tmp_path), t.reload_dataloaders_every_n_epochs
    validated = [] if "monitor" not in used else list(used["monitor"].history.of("val"))
    for path in ("epoch=0", "epoch=2", "epoch=1"):
        run(t, stage, tmp_path / f"saved/{path}.ckpt")
        assert left(used) == before
        assert files(tmp_path) == on_disk
        assert t.reload_dataloaders_every_n_epochs == reload
    for path in ("last", "best"):
        run(t, stage, path)
        assert left(used) == before
    if "monitor" in used:
        # The same weights on the same data: the same counts, at the same place.
        now = used["monitor"].history.of("val")
        assert [(e.epoch, e.step, e.counts.recall.tolist()) for e in now] == [
            (e.epoch, e.step, e.counts.recall.tolist()) for e in validated
        ]


def test_a_test_is_filed_under_the_epoch_of_its_weights(tmp_path: Path) -> None:
    t, used = fit(tmp_path)
    monitor = used["monitor"]
    assert evaluations(monitor, "val") == OF_THE_FIT
    for path in ("epoch=2", "epoch=0"):
        run(t, "test", tmp_path / f"saved/{path}.ckpt")
    assert evaluations(monitor, "test") == [(3, 26, True), (1, 11, False)]
    assert monitor.history.last("test").counts.recall.tolist() == (
        monitor.history.of("val")[0].counts.recall.tolist()  # the same data
    )
    run(t, "test", None, t.lightning_module)
    assert evaluations(monitor, "val") == OF_THE_FIT
    saved = RecallHistory.load(tmp_path / "lightning_logs/version_0/fairprune")
    assert [e.epoch for e in saved.of("val")] == [1, 2, 3, 4]


@pytest.mark.parametrize("stage", STAGES)
def test_a_new_trainer_with_new_callbacks(stage: str, tmp_path: Path) -> None:
    _, before = fit(tmp_path / "fit")
    for number in (1, 3):
        used = callbacks()
        t = trainer(used, tmp_path / stage)
        run(t, stage, tmp_path / f"fit/saved/epoch={number - 1}.ckpt")
        name = {"validate": "val", "test": "test"}.get(stage)
        if name is not None:
            assert evaluations(used["monitor"], name)[-1] == (number, STEPS[number], number > 2)
        assert evaluations(used["monitor"], "val") == OF_THE_FIT[:number]
        masks = used["weights"].masks
        assert bool(masks) == (number > 2)
        assert used["data"].selection is None
        assert not list((tmp_path / stage).rglob("pruning.*"))
        for key, mask in masks.items():
            assert mask.shape == before["weights"].masks[key].shape


@pytest.mark.parametrize("stage", STAGES)
def test_checkpoints_of_the_weights_alone_and_of_other_callbacks(
    stage: str, tmp_path: Path
) -> None:
    plain = users.trainer(enable_checkpointing=True, default_root_dir=tmp_path)
    plain.fit(users.WithLoss(), datamodule=Data())
    plain.save_checkpoint(tmp_path / "plain.ckpt")
    plain.save_checkpoint(tmp_path / "weights.ckpt", weights_only=True)
    for name in ("plain", "weights"):
        used = callbacks()
        run(trainer(used, tmp_path), stage, tmp_path / f"{name}.ckpt")
        found = evaluations(used["monitor"], {"validate": "val"}.get(stage, stage))
        assert found == ([] if stage == "predict" else [(4, 44, False)])


def test_a_fit_resumes_after_other_stages(tmp_path: Path) -> None:
    full, expected = fit(tmp_path / "full")
    used = callbacks()
    t = trainer(used, tmp_path / "resumed")
    path = tmp_path / "full/saved/epoch=2.ckpt"
    run(t, "validate", tmp_path / "full/saved/epoch=0.ckpt")
    run(t, "test", path)
    model = users.WithLoss()
    t.fit(model, datamodule=Data(), ckpt_path=path)
    for a, b in zip(model.parameters(), full.lightning_module.parameters(), strict=True):
        assert torch.equal(a, b)
    found, wanted = left(used | {"data": expected["data"]}), left(expected)
    assert found == wanted
    assert used["data"].selection.indices.tolist() == expected["data"].selection.indices.tolist()
    assert evaluations(used["monitor"], "val") == OF_THE_FIT


# ----------------------------------------------------------------- fits that begin at a later epoch


class Seen(pl.Callback):
    """Notes the number of batches of each epoch."""

    def __init__(self) -> None:
        self.batches: dict[int, int] = {}

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.batches[trainer.current_epoch] = self.batches.get(trainer.current_epoch, 0) + 1


@pytest.mark.parametrize(("warmup", "epochs"), [(2, 2), (0.25, 2), (0.4, 3)])
@pytest.mark.parametrize("after", ["continue", "restart"])
def test_a_checkpoint_without_our_state_is_warmed_up_from(
    after: Any, warmup: Any, epochs: int, tmp_path: Path
) -> None:
    plain = users.trainer(max_epochs=3)
    plain.fit(users.WithLoss(), datamodule=Data())
    plain.save_checkpoint(tmp_path / "plain.ckpt")
    prune, seen = (
        lfp.DataPruning(0.3, warmup, score=lfp.scores.el2n, keep="hard", after=after),
        Seen(),
    )
    t = users.trainer(callbacks=[prune, seen], max_epochs=8)
    t.fit(users.WithLoss(), datamodule=Data(), ckpt_path=tmp_path / "plain.ckpt")
    assert seen.batches == {3 + i: 11 if i < epochs else 4 for i in range(5)}
    assert len(prune.dynamics.signals["el2n"]) == epochs
    assert prune.history[0].epoch == 3 + epochs - 1


def test_a_fit_that_the_trainer_continues_warms_up_again(tmp_path: Path) -> None:
    prune, seen = lfp.DataPruning(0.3, 2), Seen()
    t = users.trainer(callbacks=[prune, seen], max_epochs=4)
    model = users.WithLoss()
    t.fit(model, datamodule=Data())
    t.fit_loop.max_epochs = 8
    t.fit(model, datamodule=Data())
    assert seen.batches == {0: 11, 1: 11, 2: 4, 3: 4, 4: 11, 5: 11, 6: 4, 7: 4}
    assert [estimate.epoch for estimate in prune.history] == [5, 7]
    t.save_checkpoint(tmp_path / "a.ckpt")
    again, later = lfp.DataPruning(0.3, 2), Seen()
    t = users.trainer(callbacks=[again, later], max_epochs=10)
    t.fit(users.WithLoss(), datamodule=Data(), ckpt_path=tmp_path / "a.ckpt")
    assert later.batches == {8: 4, 9: 4}
    assert [estimate.epoch for estimate in again.history] == [5, 7, 9]


def test_a_warm_up_without_room_is_refused(tmp_path: Path) -> None:
    prune = lfp.DataPruning(0.3, 2)
    t = users.trainer(callbacks=[prune], max_epochs=4)
    model = users.WithLoss()
    t.fit(model, datamodule=Data())
    t.fit_loop.max_epochs, step = 6, t.global_step
    with pytest.raises(ValueError, match=r"begins at epoch 4 .* until epoch 6 of max_epochs=6"):
        t.fit(model, datamodule=Data())
    assert t.global_step == step


def test_weights_stay_pruned_in_a_fit_that_the_trainer_continues() -> None:
    prune = lfp.WeightPruning(sparsity=0.5, start=1, end=3)
    monitor = lfp.RecallMonitor(figures=False)
    t = users.trainer(callbacks=[prune, monitor], max_epochs=4)
    model = users.WithLoss()
    t.fit(model, datamodule=Data())
    before = {name: mask.clone() for name, mask in prune.masks.items()}
    t.fit_loop.max_epochs = 6
    t.fit(model, datamodule=Data())
    assert [p.epoch for p in prune.history] == [1, 2, 3]
    for name, mask in prune.masks.items():
        assert torch.equal(mask, before[name])
        assert not model.get_parameter(name)[~mask].any()
    assert [e.epoch for e in monitor.history.evaluations] == [1, 2, 3, 4, 5, 6]


def test_a_plan_that_is_over_when_the_fit_begins_is_refused(tmp_path: Path) -> None:
    plain = users.trainer(max_epochs=3)
    plain.fit(users.WithLoss(), datamodule=Data())
    plain.save_checkpoint(tmp_path / "plain.ckpt")

    def resumed(**prune: Any) -> lfp.WeightPruning:
        callback = lfp.WeightPruning(sparsity=0.5, **prune)
        t = users.trainer(callbacks=[callback], max_epochs=8)
        t.fit(users.WithLoss(), datamodule=Data(), ckpt_path=tmp_path / "plain.ckpt")
        return callback

    with pytest.raises(
        ValueError, match=r"after 3 epochs without a state .* planned after 1: give"
    ):
        resumed(start=1, end=4)
    with pytest.raises(
        ValueError, match=r"after 33 steps without a state .* planned after 32: give"
    ):
        resumed(start=32, end=40, interval="step")
    assert [p.epoch for p in resumed(start=4, end=5).history] == [4, 5]
