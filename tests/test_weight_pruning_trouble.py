"""Weight pruning on the days when something else goes on in the fit, or goes wrong in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import users
from lightning.pytorch.callbacks import LearningRateFinder, OnExceptionCheckpoint
from lightning.pytorch.loggers import CSVLogger
from test_weight_pruning import PRUNABLE, Net, Noisy, digest, fit, save_all, zeros
from torch import nn
from torchmetrics import Metric
from users import NUM_CLASSES, Data

from lightning_fairprune import DataPruning, criteria, masks
from lightning_fairprune.callbacks.weight_pruning import WeightPruning
from lightning_fairprune.records.sparsity_record import SparsityRecord

pytestmark = pytest.mark.filterwarnings(
    # The resumed fits save nothing, so they have no ModelCheckpoint.
    "ignore:Be aware that when using `ckpt_path`, callbacks used"
)


@pytest.mark.filterwarnings("ignore:.*ckpt_path")  # looks in vain for one of the broken fit
def test_a_pruning_that_failed_is_made_up_for_by_the_fit_that_goes_on(tmp_path: Path) -> None:
    calls: list[int] = []

    def fails_once(model: nn.Module) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return criteria.magnitude(model)

    whole = WeightPruning(sparsity=0.8, start=1, end=3)
    fit(whole)
    prune = WeightPruning(fails_once, 0.8, start=1, end=3)
    with pytest.raises(RuntimeError, match="out of memory"):
        fit(prune, OnExceptionCheckpoint(tmp_path), enable_checkpointing=True)
    (path,) = tmp_path.glob("*.ckpt")
    prune = WeightPruning(fails_once, 0.8, start=1, end=3)
    model = fit(prune, resume=path)
    assert [h.target for h in prune.history] == [h.target for h in whole.history]
    assert zeros(model) == round(0.8 * PRUNABLE)


def test_masks_of_a_checkpoint_that_is_only_looked_at(tmp_path: Path) -> None:
    prune = WeightPruning(sparsity=0.8, start=1, end=3)
    fit(prune, save_all(tmp_path), enable_checkpointing=True, max_epochs=5)
    left = list(prune.history)
    for again in (WeightPruning(sparsity=0.8, start=1, end=3), prune):
        model = Net()
        trainer = users.trainer(callbacks=[again])
        trainer.validate(model, Data(), ckpt_path=str(tmp_path / "epoch=1.ckpt"), verbose=False)
        removed = sum(int((~mask).sum()) for mask in again.masks.values())
        if again is prune:  # has what its fit left
            assert removed == round(0.8 * PRUNABLE)
            assert prune.history == left
        else:
            assert again.record.at(22) == masks.sparsity_of(again.masks).total
            assert zeros(model) == removed


def test_a_pruned_model_that_is_trained_on_keeps_its_zeros() -> None:
    first = WeightPruning(criteria.random, 0.8, start=1, end=3)
    model = fit(first)
    fit(WeightPruning(sparsity=0.8, start=0, end=0), model=model)
    assert all(not model.get_parameter(name)[~mask].any() for name, mask in first.masks.items())


def test_a_rewind_is_neither_dropped_nor_taken_over_silently(tmp_path: Path) -> None:
    prune = WeightPruning(sparsity=0.8, start=2, end=3, rewind=1)
    fit(prune, save_all(tmp_path), enable_checkpointing=True, max_epochs=4)
    with pytest.raises(ValueError, match="`rewind`=None where the checkpoint has 1"):
        fit(WeightPruning(sparsity=0.8, start=2, end=3), resume=tmp_path / "epoch=1.ckpt")


def test_numbers_of_numpy_leave_plain_checkpoints_and_records(tmp_path: Path) -> None:
    counts: Any = {"start": 1, "every": 2, "floor": 2, "rewind": 0, "seed": 3}
    counts = {name: np.int64(count) for name, count in counts.items()}
    prune = WeightPruning(sparsity=np.linspace(0.5, 0.9, 3)[1], end=np.float64(0.5), **counts)
    logger = CSVLogger(tmp_path, name="", version="")
    fit(prune, save_all(tmp_path), logger=logger, enable_checkpointing=True)
    assert [h.epoch for h in prune.history] == [1, 3]
    state = torch.load(tmp_path / "epoch=5.ckpt", weights_only=True)["callbacks"]["WeightPruning"]
    assert state["plan"]["timing"]["sparsity"] == 0.7
    settings = SparsityRecord.load(tmp_path).settings
    assert settings == json.loads(json.dumps(prune.record.settings))
    assert (settings["every"], settings["seed"], settings["rewind"]) == (2, 3, 0)


class Later(LearningRateFinder):
    """Looks for another learning rate in the middle of training, as the manual of Lightning shows."""

    def on_fit_start(self, *_: Any) -> None:
        pass

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        if trainer.current_epoch == 2:
            self.lr_find(trainer, module)


@pytest.mark.filterwarnings("ignore")  # the finder's own
def test_a_learning_rate_finder_in_the_middle(tmp_path: Path) -> None:
    prune = WeightPruning(sparsity=0.8, start=1, end=4)
    finder, save = Later(num_training_steps=5, update_attr=False), save_all(tmp_path)
    fit(prune, finder, save, enable_checkpointing=True, default_root_dir=tmp_path)
    assert [h.epoch for h in prune.history] == [1, 2, 3, 4]
    state = torch.load(tmp_path / "epoch=5.ckpt", weights_only=True)["callbacks"]["WeightPruning"]
    assert state["done"] == 4
    assert len(state["history"]) == 4


@pytest.mark.parametrize("at", [1, 3])
@pytest.mark.parametrize("optimizer", [torch.optim.Adam, Noisy])
def test_an_optimiser_that_is_made_in_the_middle(optimizer: Any, at: int) -> None:
    class Anew(Net):
        def on_train_epoch_start(self) -> None:
            if self.current_epoch == at:
                self.trainer.strategy.setup_optimizers(self.trainer)

    prune = WeightPruning(sparsity=0.8, start=2, end=2)
    assert zeros(fit(prune, model=Anew(optimizer, lr=0.01))) == round(0.8 * PRUNABLE)


def test_the_closure_of_lbfgs_never_sees_a_removed_weight(tmp_path: Path) -> None:
    """Its directions come from gradients of before the pruning, in one vector for all weights."""

    class Deterministic(Net):
        looks = 0

        def __init__(self) -> None:
            super().__init__(torch.optim.LBFGS)
            self.net[1], self.net[3] = nn.Identity(), nn.Identity()
            self.options = {"lr": 0.1, "max_iter": 3}

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            for name, mask in prune.masks.items():
                assert not self.get_parameter(name).detach()[~mask].any()
                self.looks += 1
            return super().training_step(batch, batch_idx)

    found = []
    for resume in (None, tmp_path / "epoch=2.ckpt"):
        prune = WeightPruning(sparsity=0.8, start=1, end=4)
        more = [] if resume else [save_all(tmp_path)]
        options = {"data": Data(shuffle=False), "enable_checkpointing": not resume}
        model = fit(prune, *more, model=Deterministic, resume=resume, **options)
        assert model.looks
        found.append(digest(model))
    assert found[0] == found[1]


class TwoSteps(Net):
    """Two optimisers and two steps a batch, as adversarial training has."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self) -> Any:
        first, second = self.net[:4].parameters(), self.net[4:].parameters()
        return torch.optim.Adam(first, 0.01), torch.optim.SGD(second, 0.01, momentum=0.9)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizers: Any = self.optimizers()
        for optimizer in optimizers:
            optimizer.zero_grad()
            self.manual_backward(nn.functional.cross_entropy(self(batch[0]), batch[1]))
            self.clip_gradients(optimizer, 1.0, "norm")
            optimizer.step()


def test_steps_of_manual_optimisation_are_counted_as_they_come() -> None:
    """The last of 132 steps comes after the 66 batches of training."""
    prune = WeightPruning(sparsity=0.8, start=20, end=100, every=40, interval="step")
    assert zeros(fit(prune, model=TwoSteps())) == round(0.8 * PRUNABLE)
    assert [(h.epoch, h.step) for h in prune.history] == [(1, 20), (3, 60), (5, 100)]
    prune = WeightPruning(sparsity=0.8, start=0.25, end=0.75, every=11, interval="step")
    with pytest.raises(ValueError, match=r"length in steps is unknown: give Trainer\(max_steps="):
        fit(prune, model=TwoSteps())
    fit(prune, model=TwoSteps(), max_steps=88)
    assert [h.step for h in prune.history] == [22, 34, 44, 56, 66]


@pytest.mark.filterwarnings("ignore:.*keep no sample")
def test_epochs_that_become_shorter_fit_into_max_steps() -> None:
    """10 + 10 steps, then 3 an epoch."""
    prune = WeightPruning(sparsity=0.8, start=3, end=6)
    data = DataPruning(0.3, 2, quota=None)
    fit(prune, data, data=Data(drop_last=True), max_epochs=10, max_steps=40)
    assert [h.step for h in prune.history] == [23, 26, 29, 32]


def test_a_classifier_with_a_parametrisation_stays_dense() -> None:
    model = Net()
    nn.utils.parametrizations.spectral_norm(model.net[6])
    prune = WeightPruning(sparsity=0.8, start=1, end=1)
    fit(prune, model=model)
    assert list(prune.masks) == ["net.0.weight", "net.4.weight"]


def test_a_frozen_teacher_is_told_of_and_its_classifier_is_not_taken_for_ours() -> None:
    class Taught(Net):
        def __init__(self) -> None:
            super().__init__()
            self.teacher = Net().net.requires_grad_(False)

    with pytest.warns(
        UserWarning, match=r"frozen, too: teacher.0.weight and 2 more. .* with `exclude`"
    ):
        fit(WeightPruning(sparsity=0.8, start=1, end=1), model=Taught())
    for patterns in ({"exclude": ["teacher.*"]}, {"include": ["net.*.weight"]}):
        prune = WeightPruning(sparsity=0.8, start=1, end=1, **patterns)  # type: ignore[arg-type]
        fit(prune, model=Taught())
        assert "net.6.weight" not in prune.masks


class Distance(Metric):
    """Has a network of its own, as FID has."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Linear(NUM_CLASSES, 3)
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, x: Any) -> None:
        self.total += self.network(x).sum()

    def compute(self) -> Any:
        return self.total


def test_the_network_of_a_metric_is_not_pruned() -> None:
    for criterion in (criteria.magnitude, criteria.gradient):
        model = Net()
        model.distance = Distance()
        prune = WeightPruning(criterion, 0.8, start=1, end=1)
        users.trainer(callbacks=[prune]).fit(model, Data())
        assert list(prune.masks) == ["net.0.weight", "net.4.weight"]
        with pytest.raises(ValueError, match=r"no parameter has a name like 'distance\.\*'"):
            fit(WeightPruning(criterion, 0.8, exclude=["distance.*"]), model=model)
