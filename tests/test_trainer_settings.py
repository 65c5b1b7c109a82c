"""Settings of the Trainer that count steps, epochs or seconds in a way of their own."""

from __future__ import annotations

import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import users
from clock import Clock
from lightning.pytorch import callbacks
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from users import Data, Model, Probe

import lightning_fairprune as lfp
from lightning_fairprune import masks


class Ticking(Model):
    """A step takes a second; notes after which step of the fit it is validated."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock, self.validated = clock, []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.clock.now += 1
        return super().training_step(batch, batch_idx)

    def on_validation_start(self) -> None:
        self.validated.append(self.global_step)


@pytest.mark.parametrize(
    "interval", [timedelta(seconds=4), "00:00:00:04", {"seconds": 4}], ids=["delta", "text", "dict"]
)
@pytest.mark.parametrize("every", [1, None])
def test_validation_by_the_clock_runs_as_without_pruning(every: Any, interval: Any) -> None:
    callback = lfp.DataPruning(0.4, 1)
    if not hasattr(users.trainer(), "_val_check_time_interval"):
        pytest.skip("this Lightning has no validation by the clock")
    with Clock() as clock:
        t = users.trainer(
            callbacks=[callback], val_check_interval=interval, check_val_every_n_epoch=every
        )
        model = Ticking(clock)
        t.fit(model, datamodule=Data())
    assert t.global_step == 11 + 3 * 5
    # The swap after 11 steps loads new batches, which does not start the clock again.
    assert model.validated == [4, 8, 12, 16, 20, 24]
    assert len(callback.history) == 2


class Planned(Model):
    def configure_optimizers(self) -> Any:
        self.planned = lfp.planned_stepping_batches(self.trainer)
        optimizer = torch.optim.SGD(self.parameters(), 0.1)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, self.planned)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def test_planned_steps_are_the_steps_taken_with_a_scheduler_of_accumulation() -> None:
    model = Planned()
    scheduler = GradientAccumulationScheduler({0: 4, 2: 1, 4: 2})
    t = users.trainer(callbacks=[lfp.DataPruning(0.4, 1), scheduler], max_epochs=6)
    t.fit(model, datamodule=Data())
    assert t.global_step == model.planned == 3 + 2 + 5 + 5 + 3 + 3
    assert t.optimizers[0].param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)


def test_max_steps_are_compared_with_the_steps_of_a_scheduler_of_accumulation() -> None:
    def fit(max_steps: int) -> lfp.DataPruning:
        callback = lfp.DataPruning(0.4, 2)
        scheduler = GradientAccumulationScheduler({0: 4, 1: 2})
        t = users.trainer(callbacks=[callback, scheduler], max_steps=max_steps, max_epochs=9)
        t.fit(Model(), datamodule=Data())
        return callback

    assert fit(12).pruned
    with pytest.raises(ValueError, match=r"2 epochs of 11 batches \(9 steps\) with max_steps=9"):
        fit(9)


def test_weights_are_pruned_at_fractions_of_the_steps_of_a_scheduler_of_accumulation() -> None:
    prune = lfp.WeightPruning(
        sparsity=0.5, start=0.5, end=0.5, interval="step", schedule=masks.schedules.one_shot
    )
    scheduler = GradientAccumulationScheduler({0: 4, 2: 1})
    t = users.trainer(callbacks=[prune, scheduler])
    t.fit(Model(), datamodule=Data())
    assert t.global_step == 2 * 3 + 2 * 11
    assert [pruning.step for pruning in prune.history] == [14]


@pytest.mark.parametrize("begins", [0, 23])
def test_validations_of_an_average_that_has_not_begun_are_told(begins: int) -> None:
    if not hasattr(callbacks, "EMAWeightAveraging"):
        pytest.skip("this Lightning has no EMAWeightAveraging")
    average = callbacks.EMAWeightAveraging(decay=0.9, update_starting_at_step=begins)
    monitor = lfp.RecallMonitor(figures=False)
    t = users.trainer(callbacks=[lfp.DataPruning(0.4, 2), monitor, average])
    words = "EMAWeightAveraging has not averaged any weights after 11 steps, and validation is of"
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        t.fit(Model(), datamodule=Data())
    assert sum(str(warning.message).startswith(words) for warning in told) == (begins > 0)


class ByHand(Model):
    """Two optimisers that both step after every `every` batches."""

    def __init__(self, every: int) -> None:
        super().__init__()
        self.automatic_optimization, self.every = False, every

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.manual_backward(super().training_step(batch, batch_idx))
        for optimizer in self.optimizers() if batch_idx % self.every == 0 else ():
            optimizer.step()
            optimizer.zero_grad()

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(part.parameters(), 0.1) for part in (self.net[0], self.net[2])]


def test_steps_by_hand_are_counted_by_the_trainer_alone() -> None:
    callback = lfp.DataPruning(0.4, 2)
    t = users.trainer(callbacks=[callback], max_steps=20, max_epochs=9)
    t.fit(ByHand(every=4), datamodule=Data())  # 12 steps in the warm-up of 22 batches
    assert callback.pruned
    assert t.global_step == 20
    assert t.current_epoch == 4


def test_weights_are_pruned_by_epoch_whatever_steps_are_by_hand() -> None:
    prune = lfp.WeightPruning(sparsity=0.5, start=1, end=2)
    t = users.trainer(callbacks=[prune], max_steps=20, max_epochs=9)
    t.fit(ByHand(every=4), datamodule=Data())
    assert [pruning.epoch for pruning in prune.history] == [1, 2]


@pytest.mark.parametrize("seconds", [15, 24, 26])
@pytest.mark.parametrize("pruned", [True, False])
def test_a_fit_that_time_cut_is_resumed_with_a_whole_epoch(
    pruned: bool, seconds: int, tmp_path: Path
) -> None:
    """As without the callback: the epoch in which training ended counts as done."""

    def fit(path: str | None, **limits: Any) -> tuple[Any, Probe]:
        probe = Probe()
        prune = lfp.DataPruning(0.4, 2, quota=lfp.quotas.proportional)
        t = users.trainer(callbacks=[prune, probe] if pruned else [probe], max_epochs=5, **limits)
        with Clock() as clock, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            t.fit(Ticking(clock), datamodule=Data(), ckpt_path=path)
        return t, probe

    cut, _ = fit(None, max_time={"seconds": seconds})
    cut.save_checkpoint(path := str(tmp_path / "cut.ckpt"))
    _, probe = fit(path)
    for epoch in range(cut.current_epoch, 5):
        samples = probe.samples[epoch]
        # The warm-up lasts an epoch longer if its last one was cut.
        short = pruned and epoch > (2 if seconds == 15 else 1)
        assert len(samples) == len(set(samples)) == (41 if short else 103)
        assert probe.validations[epoch] == 1
