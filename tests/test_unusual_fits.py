"""Fits that look odd and work, and what can only be told or warned of during the fit."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import users
from clock import Clock
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from torch.utils.data import (
    DataLoader,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)
from users import Blobs, Data, Model

import lightning_fairprune as lfp
from lightning_fairprune.callbacks._data import checks as _checks


def fit(
    *others: Callback,
    data: Any = None,
    model: Any = None,
    trainer: dict[str, Any] | None = None,
    **prune: Any,
) -> lfp.DataPruning:
    callback = lfp.DataPruning(**({"density": 0.4, "warmup_epochs": 2} | prune))
    t = users.trainer(callbacks=[callback, *others], **(trainer or {}))
    t.fit(Model() if model is None else model, datamodule=Data() if data is None else data)
    return callback


# ------------------------------------------------------------------------------- length of training


def test_fraction_of_training_is_rounded_to_epochs() -> None:
    assert fit(warmup_epochs=0.4).run.warmup == 2


def test_val_check_interval_across_epochs_is_fine() -> None:
    fit(trainer={"val_check_interval": 6, "check_val_every_n_epoch": None})


def test_fast_dev_run_works_whatever_the_warmup() -> None:
    assert fit(trainer={"fast_dev_run": True}, warmup_epochs=10).selection is None


# -------------------------------------------------------------------------------------------- data


@pytest.mark.filterwarnings("ignore:.*were never observed in the warm-up")
def test_weighted_sampler_is_restricted_by_its_weights() -> None:
    data = Data()
    weights = torch.ones(103)
    weights[:20] = 0
    data.train_dataloader = lambda: DataLoader(
        data.train, 10, sampler=WeightedRandomSampler(weights, 206)
    )
    callback = fit(data=data, warmup_epochs=3)
    assert int(callback.selection.indices.min()) >= 20
    assert len(callback.run.source.sampler) == 82  # two draws per sample, as before


def test_never_observed_samples_are_told_or_refused() -> None:
    with pytest.warns(UserWarning, match="of 103 training samples were never observed"):
        fit(trainer={"limit_train_batches": 0.5}, warmup_epochs=1)
    with pytest.raises(ValueError, match=r"only \d+ can be kept where 93 are wanted"):
        fit(trainer={"limit_train_batches": 0.5}, warmup_epochs=1, density=0.9)


def test_labels_that_the_data_set_knows_fill_the_gaps() -> None:
    blobs = Blobs()
    data = Data()
    data.train_dataloader = lambda: DataLoader(
        Subset(TensorDataset(blobs.x, blobs.y), range(103)), 10, shuffle=True, drop_last=True
    )
    callback = fit(data=data, warmup_epochs=1)  # 3 samples were dropped, and no warning says so
    assert int(callback.selection.sizes.sum()) == 103


# -------------------------------------------------------------------------------------------- steps


def test_batch_normalisation_without_a_last_batch_of_one_sample() -> None:
    class Normalised(Model):
        def __init__(self) -> None:
            super().__init__()
            self.net.insert(1, torch.nn.BatchNorm1d(16))

    fit(model=Normalised(), density=0.39)


class SkipsBatches(Model):
    """Returns None before any loss on every third batch of the first epoch."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.current_epoch == 0 and batch_idx % 3 == 0:
            return None
        return super().training_step(batch, batch_idx)


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_skipped_steps_are_no_fault() -> None:
    callback = fit(model=SkipsBatches(), score=lfp.scores.el2n, keep="hard")
    assert callback.dynamics.observed.sum(1).tolist() == [103 - 4 * 10, 103]


@pytest.mark.filterwarnings("ignore:train_dataloader yielded None", "ignore:.*were never observed")
def test_a_batch_that_the_loader_leaves_out_is_no_step() -> None:
    def collate(samples: list[Any]) -> Any:
        return None if float(samples[0][0][0]) > 0.08 else default_collate(samples)

    data = Data()
    data.train_dataloader = lambda: DataLoader(Blobs(), 10, shuffle=True, collate_fn=collate)
    callback = fit(data=data, warmup_epochs=1)
    target, labels = callback.run.decision.target, Blobs().y
    assert 0 < int((target < 0).sum()) < 103
    assert torch.equal(target[target >= 0], labels[target >= 0])


# ---------------------------------------------------------------------------- functions of the user


def test_restart_needs_weights_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    # Sharded strategies need a GPU; the check looks at the type alone.
    t = users.trainer()
    t.datamodule = Data()
    monkeypatch.setattr(users.pl.Trainer, "strategy", type("FSDPStrategy", (), {})())
    monkeypatch.setattr(users.pl.Trainer, "enable_validation", True)
    with pytest.raises(ValueError, match="one device and with DDP, got FSDPStrategy"):
        _checks.trainer(lfp.DataPruning(0.4, 2, after="restart").settings, t, Model())


# ------------------------------------------------------------------------------------------ ends

NOTHING = "nothing was trained on the kept samples"


class Stops(Callback):
    def __init__(self, at: int) -> None:
        self.at = at

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        trainer.should_stop = trainer.global_step >= self.at


@pytest.mark.parametrize(("at", "epoch"), [(1, 1), (11, 1), (12, 2), (22, 2)])
def test_a_fit_that_stops_in_the_warm_up_says_that_nothing_was_pruned(at: int, epoch: int) -> None:
    with pytest.warns(UserWarning, match=f"{NOTHING}: training ended at epoch {epoch}, after"):
        fit(Stops(at), quota=lfp.quotas.proportional)


def test_a_fit_that_ends_by_the_clock_in_the_warm_up_says_so() -> None:
    with pytest.warns(UserWarning, match=f"{NOTHING}: training ended at epoch 0, after 0 steps"):
        fit(trainer={"max_time": {"seconds": 0}})


def test_an_epoch_that_time_cuts_decides_nothing() -> None:
    class Slow(Model):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            clock.now += 1
            return super().training_step(batch, batch_idx)

    with Clock() as clock, pytest.warns(UserWarning, match=f"{NOTHING}.* after 7 steps, before"):
        # The 70 samples that were seen are fewer than 93.
        callback = fit(
            model=Slow(), trainer={"max_time": {"seconds": 7}}, density=0.9, warmup_epochs=1
        )
    assert not callback.pruned


@pytest.mark.parametrize("reload", [0, 2])
def test_a_fit_that_stops_with_the_warm_up_leaves_the_trainer_as_it_was(reload: int) -> None:
    with pytest.warns(UserWarning, match=f"{NOTHING}.* after 22 steps, together with"):
        callback = fit(Stops(22), trainer={"reload_dataloaders_every_n_epochs": reload})
    assert callback.pruned
    assert callback.run.trainer.reload_dataloaders_every_n_epochs == reload


def test_a_fit_that_prunes_says_nothing() -> None:
    with warnings.catch_warnings(record=True) as told:
        fit(Stops(23))
    assert not [w for w in told if NOTHING in str(w.message)]


@pytest.mark.filterwarnings("ignore:no validation has finished")
def test_no_validation_by_the_clock_is_said() -> None:
    with pytest.warns(UserWarning, match=NOTHING):
        fit(trainer={"val_check_interval": {"hours": 1}})


class TwoOptimizers(Model):
    """Two optimisers that both step on every batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()
            optimizer.zero_grad()
        return loss

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(self.net[i].parameters(), 0.1) for i in (0, 2)]


def test_steps_of_two_optimizers_that_end_in_the_warm_up() -> None:
    with pytest.warns(UserWarning, match=f"{NOTHING}.* after 30 steps, before the warm-up"):
        fit(model=TwoOptimizers(), trainer={"max_steps": 30})


# ------------------------------------------------------------------------------- readers of recalls


class Plateau(Model):
    frequency = 1

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="max")
        config = {
            "scheduler": plateau,
            "monitor": "val/recall/worst",
            "frequency": self.frequency,
        }
        return {"optimizer": optimizer, "lr_scheduler": config}


def monitored(*callbacks: Callback, model: Any = None, every: int = 2, **options: Any) -> Any:
    monitor = lfp.RecallMonitor(every_n_epochs=every, figures=False)
    options["enable_checkpointing"] = any(isinstance(c, ModelCheckpoint) for c in callbacks)
    trainer = users.trainer(callbacks=[monitor, *callbacks], **options)
    trainer.fit(model or Model(), Data())
    return monitor


def worst(kind: Any, **options: Any) -> Any:
    return kind(monitor="val/recall/worst", mode="max", **options)


def test_what_reads_a_recall_that_is_not_logged_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"EarlyStopping reads 'val/recall/worst' every epoch, .*2"
    ):
        monitored(worst(EarlyStopping, strict=False))
    with pytest.raises(ValueError, match=r"ModelCheckpoint reads .* every 3 epochs, .*=1, or"):
        monitored(worst(ModelCheckpoint, dirpath=tmp_path, every_n_epochs=3))
    with pytest.raises(ValueError, match=r"ReduceLROnPlateau reads .* every epoch"):
        monitored(model=Plateau())
    with pytest.raises(ValueError, match=r"every 2 epochs, .*logs it every 4 epochs only.*=2, or"):
        monitored(worst(EarlyStopping), every=4, check_val_every_n_epoch=2)


def test_what_reads_a_recall_where_it_is_logged_works(tmp_path: Path) -> None:
    model = Plateau()
    model.frequency = 2
    saves = worst(ModelCheckpoint, dirpath=tmp_path, every_n_epochs=2, save_top_k=-1)
    monitor = monitored(saves, model=model)
    assert [e.epoch for e in monitor.history.evaluations] == [2, 4]
    assert len(list(tmp_path.glob("*.ckpt"))) == 2
    stops = worst(EarlyStopping)
    monitor = monitored(stops, check_val_every_n_epoch=2)
    best = max(e.counts.worst for e in monitor.history.evaluations)
    assert float(stops.best_score) == pytest.approx(best)
    monitored(EarlyStopping("val_loss"))  # reads another value


# --------------------------------------------------------------------------------- changing samples


class Grows(Data):
    """Returns ten samples more at every reload."""

    more = 0

    def train_dataloader(self) -> Any:
        self.train = Blobs(self.n + self.more)
        self.more += 10
        return super().train_dataloader()


@pytest.mark.parametrize(("every", "found"), [(1, "113 samples"), (0, "113 samples")])
def test_a_data_set_that_grows_at_a_reload_is_named(every: int, found: str) -> None:
    with pytest.raises(
        ValueError, match=f"has {found}, and had 103 at the last reload, .*every reload"
    ):
        fit(data=Grows(), trainer={"reload_dataloaders_every_n_epochs": every})


class Named(Data):
    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.train.classes = ["ant", "bee", "cat", "dog"]


def nothing_for_two(sizes: torch.Tensor, budget: int) -> torch.Tensor:
    quota = sizes.clone()
    quota[1:3] = 0
    quota[0] = budget - quota[3]
    return quota


def test_classes_that_keep_nothing_are_named_once() -> None:
    with pytest.warns(
        UserWarning, match=r"2 of 4 classes keep no sample.*: 1 \(bee\), 2 \(cat\)\. Set"
    ):
        fit(data=Named(), quota=nothing_for_two, update_every=1)
    with pytest.warns(UserWarning, match=r"keep no sample.*: 1, 2\. Set") as told:
        fit(quota=nothing_for_two, update_every=1)
    assert sum("keep no sample" in str(w.message) for w in told) == 1


def by_index(dynamics: lfp.Dynamics) -> torch.Tensor:
    return -dynamics.target.double()  # the highest class is the easiest


def test_classes_that_keep_nothing_without_quotas_are_named() -> None:
    with pytest.warns(UserWarning, match=r"3 of 4 classes keep no sample.*: 1, 2, 3\. Use quotas"):
        fit(quota=None, score=by_index, keep="hard")
