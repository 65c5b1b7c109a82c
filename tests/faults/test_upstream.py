"""Known troubles of Lightning with resuming and reloading, by the number of the issue: DataPruning is not hit."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import users
from lightning.pytorch.callbacks import ModelCheckpoint

import lightning_fairprune as lfp

# Two warm-up epochs of 11 batches over 103 samples, two of 5 batches over 41; 3 batches of validation.
pytestmark = [
    # The resumed fits save nothing, so they have no ModelCheckpoint.
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used"),
]


class Scheduled(users.Model):
    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]


class Weighted(users.Model):
    def __init__(self) -> None:
        super().__init__()
        self.loss = torch.nn.CrossEntropyLoss()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.loss(self(batch[0]), batch[1])


class Breaking(Weighted):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if (self.trainer.current_epoch, batch_idx) == (1, 1):
            raise RuntimeError("broken in validation")
        super().validation_step(batch, batch_idx)


class LastWords(pl.Callback):
    """ModelCheckpoint(save_on_exception=True), which older versions of Lightning do not know."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_exception(self, trainer: Any, *_: Any) -> None:
        trainer.save_checkpoint(self.path)


class Validations(pl.Callback):
    """Counts their batches."""

    def __init__(self) -> None:
        self.batches: Counter[int] = Counter()

    def on_validation_batch_end(self, trainer: Any, *args: Any) -> None:
        self.batches[trainer.current_epoch] += 1


def fit(
    *callbacks: Any, model: Any = users.Model, workers: int = 0, resume: Path | None = None
) -> tuple[users.Probe, pl.Trainer]:
    pl.seed_everything(1, verbose=False)
    probe, prune = users.Probe(), lfp.DataPruning(0.4, 2)
    saves = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    trainer = users.trainer(callbacks=[prune, probe, *callbacks], enable_checkpointing=saves)
    trainer.fit(model(), datamodule=users.Data(workers=workers), ckpt_path=resume)
    return probe, trainer


def saving(folder: Path, **when: Any) -> ModelCheckpoint:
    return ModelCheckpoint(folder, filename="{step}", save_top_k=-1, **when)


@pytest.fixture(scope="module")
def every_step(tmp_path_factory: pytest.TempPathFactory) -> tuple[users.Probe, Path]:
    """An uninterrupted fit, and its checkpoints after every step."""
    folder = tmp_path_factory.mktemp("steps")
    keep = saving(folder, every_n_train_steps=1, save_on_train_epoch_end=False)
    return fit(keep)[0], folder


def test_21773_epochs_of_different_size_end_where_they_should() -> None:
    """Lightning keeps the number of batches of the first epoch."""
    validations = Validations()
    probe, trainer = fit(validations, model=Scheduled)
    assert probe.batches == {0: 11, 1: 11, 2: 5, 3: 5}
    assert probe.planned == probe.batches  # what the bar shows, and when an epoch is over
    assert validations.batches == dict.fromkeys(range(4), 3)
    assert trainer.global_step == 32
    # Stepped at the end of each epoch.
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1 / 2**4)


def test_20288_validation_after_resuming_inside_an_epoch_is_whole(
    every_step: tuple[users.Probe, Path],
) -> None:
    """Lightning 2.3 and 2.4 ran one batch of it."""
    validations, track = Validations(), lfp.RecallMonitor()
    fit(validations, track, resume=every_step[1] / "step=15.ckpt")
    assert validations.batches == {1: 3, 2: 3, 3: 3}
    assert [int(e.counts.support.sum()) for e in track.history.evaluations] == [60, 60, 60]


def test_20288_part_of_a_validation_sets_no_quotas(tmp_path: Path) -> None:
    """Lightning runs the rest of a validation in which training broke, over other samples than the rest."""
    last = tmp_path / "last.ckpt"
    with pytest.raises(RuntimeError, match="broken in validation"):
        fit(LastWords(last), lfp.RecallMonitor(), model=Breaking)
    validations, track = Validations(), lfp.RecallMonitor()
    with pytest.warns(UserWarning, match="validation") as told:
        fit(validations, track, resume=last)
    assert validations.batches[1] < 3
    words = [str(warning.message) for warning in told]
    assert any("inside the validation of epoch 1" in text for text in words)  # from RecallMonitor
    assert any("last batch of epoch 1, before the end of its" in text for text in words)
    # One of the epoch before the checkpoint, none of half an epoch.
    assert [e.epoch for e in track.history.evaluations] == [1, 3, 4]
    assert {int(e.counts.support.sum()) for e in track.history.evaluations} == {60}


class Weights(pl.Callback):
    """Notes the class weights that an epoch begins with."""

    def __init__(self, of: lfp.ClassWeighting) -> None:
        self.of = of
        self.at_start: dict[int, Any] = {}

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        weight = self.of.weight
        self.at_start[trainer.current_epoch] = None if weight is None else weight.tolist()


def test_20288_part_of_a_validation_sets_no_class_weights(tmp_path: Path) -> None:
    first, last = lfp.ClassWeighting(), tmp_path / "last.ckpt"
    before = Weights(first)
    with pytest.raises(RuntimeError, match="broken in validation"):
        fit(first, before, LastWords(last), model=Breaking)
    second = lfp.ClassWeighting()
    after = Weights(second)
    with pytest.warns(UserWarning, match="last batch of epoch 1, before the end") as told:
        fit(second, after, model=Weighted, resume=last)
    assert any("weights stay those of the validation before" in str(w.message) for w in told)
    assert before.at_start[1] is not None
    assert after.at_start[2] == before.at_start[1]
    assert after.at_start[3] != before.at_start[1]
