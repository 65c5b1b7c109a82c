"""Fits that begin where the callbacks have not been: inside an epoch, with another model, or without a step."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import users
from lightning.pytorch.tuner import Tuner

import lightning_fairprune as lfp

pytestmark = [
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used"),
    # Plain loaders repeat batches when a fit goes on inside an epoch.
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before"),
]


class Saves(pl.Callback):
    def __init__(self, path: Path, step: int) -> None:
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def saved(folder: Path, step: int) -> Path:
    """A checkpoint of a fit without our callbacks, after some steps of epochs of 11."""
    path = folder / "plain.ckpt"
    users.trainer(callbacks=[Saves(path, step)]).fit(users.WithLoss(), users.Data())
    return path


@pytest.mark.parametrize("form", [users.Data, lambda: lfp.FairPruneDataModule(users.Data())])
def test_data_pruning_refuses_the_rest_of_an_epoch(form: Any, tmp_path: Path) -> None:
    model, path = users.WithLoss(), saved(tmp_path, 16)
    trainer = users.trainer(callbacks=[lfp.DataPruning(0.3, 2)], max_epochs=8)
    with pytest.raises(
        ValueError, match="begins at batch 5 of epoch 1, from a checkpoint of a fit"
    ):
        trainer.fit(model, form(), ckpt_path=path)
    assert trainer.global_step == 16


def test_class_weighting_begins_with_its_first_validation(tmp_path: Path) -> None:
    class Seen(pl.Callback):
        def __init__(self) -> None:
            self.weighted: list[tuple[int, bool]] = []

        def on_train_batch_start(self, trainer: Any, module: Any, *_: Any) -> None:
            self.weighted.append((trainer.current_epoch, module.loss.weight is not None))

    seen = Seen()
    trainer = users.trainer(callbacks=[lfp.ClassWeighting(), seen], max_epochs=4)
    trainer.fit(users.WithLoss(), users.Data(), ckpt_path=saved(tmp_path, 16))
    assert seen.weighted == [(1, False)] * 6 + [(2, True)] * 11 + [(3, True)] * 11


def test_masks_stay_with_their_model() -> None:
    prune, model = lfp.WeightPruning(sparsity=0.5, start=1, end=2), users.WithLoss()
    trainer = users.trainer(callbacks=[prune])
    trainer.fit(model, users.Data())
    trainer.fit_loop.max_epochs = 8
    prune.setup(trainer, model, "fit")
    assert prune.masks
    prune.setup(trainer, users.WithLoss(), "fit")
    assert prune.masks == {}
    assert prune.history == []


def test_recalls_stay_with_their_model() -> None:
    monitor, model = lfp.RecallMonitor(figures=False), users.WithLoss()
    trainer = users.trainer(callbacks=[monitor], max_epochs=2)
    for epochs, fitted, expected in (
        (2, model, [1, 2]),
        (3, model, [1, 2, 3]),
        (4, users.WithLoss(), [4]),
    ):
        trainer.fit_loop.max_epochs = epochs
        trainer.fit(fitted, users.Data())
        assert [e.epoch for e in monitor.history.evaluations] == expected


def test_a_fit_without_a_step_prunes_nothing_and_says_so() -> None:
    prune = lfp.WeightPruning(sparsity=0.5, start=1, end=2)
    with pytest.warns(UserWarning, match="ended at a sparsity of 0 where 0.5 was planned"):
        users.trainer(callbacks=[prune], limit_train_batches=0).fit(users.WithLoss(), users.Data())
    data = lfp.DataPruning(0.3, 2)
    with pytest.warns(UserWarning, match="nothing was trained on the kept samples"):
        users.trainer(callbacks=[data], limit_train_batches=0).fit(users.WithLoss(), users.Data())
    assert data.selection is None


def test_copies_of_a_trainer_fit_like_it() -> None:
    def fitted(trainer: pl.Trainer) -> tuple[pl.Trainer, list[int], list[int]]:
        pl.seed_everything(1, verbose=False)
        trainer.fit(users.WithLoss(), users.Data())
        data, weights = trainer.callbacks[:2]
        return trainer, data.selection.indices.tolist(), [p.epoch for p in weights.history]

    callbacks = [lfp.DataPruning(0.3, 2), lfp.WeightPruning(sparsity=0.5, start=1, end=2)]
    fresh = users.trainer(callbacks=callbacks)
    again = copy.deepcopy(fresh)
    used, *first = fitted(fresh)
    assert again.callbacks[0].selection is None
    assert list(fitted(again)[1:]) == first
    kept = copy.deepcopy(used).callbacks
    assert kept[0].selection.indices.tolist() == first[0]
    assert kept[1].masks.keys() == callbacks[1].masks.keys()
    assert len(pickle.dumps(kept[0])) < 10**4  # no Trainer, model or data


def test_tuners_leave_the_epochs_of_the_fit(tmp_path: Path) -> None:
    data, weights = lfp.DataPruning(0.3, 2), lfp.WeightPruning(sparsity=0.5, start=1, end=2)
    monitor, model = lfp.RecallMonitor(figures=False), users.WithLoss()
    trainer = users.trainer(callbacks=[data, weights, monitor], default_root_dir=tmp_path)
    Tuner(trainer).lr_find(model, datamodule=users.Data(), num_training=5)
    trainer.fit(model, users.Data())
    assert [estimate.epoch for estimate in data.history] == [1, 3]
    assert [pruning.epoch for pruning in weights.history] == [1, 2]
    assert [evaluation.epoch for evaluation in monitor.history.evaluations] == [1, 2, 3, 4]


def test_an_exception_leaves_callbacks_that_fit_again() -> None:
    class Fails(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
            if trainer.global_step == 24:  # after the swap
                raise RuntimeError("on purpose")

    used: list[Any] = [lfp.DataPruning(0.3, 2), lfp.RecallMonitor(figures=False)]
    trainer, model = users.trainer(callbacks=[*used, Fails()]), users.WithLoss()
    with pytest.raises(RuntimeError, match="on purpose"):
        trainer.fit(model, users.Data())
    assert trainer.reload_dataloaders_every_n_epochs == 0
    trainer.test(model, users.Data(), verbose=False)
    assert used[1].history.last("test")[:2] == ("test", 2)
    users.trainer(callbacks=used).fit(users.WithLoss(), users.Data())
    assert [e.epoch for e in used[1].history.evaluations] == [1, 2, 3, 4]
    assert len(used[0].selection) == 31
