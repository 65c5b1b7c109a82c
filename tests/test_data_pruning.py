"""What DataPruning decides, when, and what it leaves behind."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import users
from torch.utils.data import DataLoader
from users import Blobs, Data, Model, Probe

import lightning_fairprune as lfp
from lightning_fairprune.counts import ClassCounts


def fit(
    *,
    callback: lfp.DataPruning | None = None,
    model: Any = None,
    data: Any = None,
    others: tuple[Any, ...] = (),
    trainer: dict[str, Any] | None = None,
    **prune: Any,
) -> lfp.DataPruning:
    users.pl.seed_everything(1, verbose=False)
    callback = callback or lfp.DataPruning(**({"density": 0.4, "warmup_epochs": 2} | prune))
    t = users.trainer(callbacks=[callback, *others], **(trainer or {}))
    t.fit(model or Model(), datamodule=data or Data())
    return callback


class Recalls(users.pl.Callback):
    """Counts the validation recalls of every epoch by a slow loop of its own."""

    def __init__(self) -> None:
        self.counts: list[ClassCounts] = []

    def on_validation_epoch_end(self, trainer: Any, module: Any) -> None:
        tp, support = [0] * users.NUM_CLASSES, [0] * users.NUM_CLASSES
        for x, y in trainer.datamodule.val:
            support[y] += 1
            tp[y] += int(module(x[None]).argmax()) == y
        self.counts.append(ClassCounts(torch.tensor(tp), torch.tensor(support)))


# ----------------------------------------------------------------------------------- the decision


@pytest.mark.parametrize("window", [1, 3])
def test_quotas_follow_the_pooled_recalls(window: int) -> None:
    recalls = Recalls()
    callback = fit(others=(recalls,), recall_window=window, shrinkage=0.0, update_every=1)
    sizes = torch.bincount(Blobs().y)
    assert [estimate.epoch for estimate in callback.history] == [1, 2, 3]
    for epoch, recall, quota, _ in callback.history:
        pooled = ClassCounts.pooled(recalls.counts[: epoch + 1][-window:])
        torch.testing.assert_close(recall, pooled.recall)
        assert quota.tolist() == lfp.quotas.drop(sizes, pooled.recall, 41).tolist()
    assert callback.quota is callback.history[-1].quota


def test_shrinkage_pulls_to_the_mean() -> None:
    callback = fit(shrinkage=1e9)
    quota = callback.history[0].quota
    proportional = lfp.quotas.proportional(torch.bincount(Blobs().y), 41)
    assert quota.tolist() == proportional.tolist()


def test_no_class_loses_everything_by_default() -> None:
    """A class without an error in a small validation set has a quota of 0 by the plain formula."""
    recall = [1.0, 1.0, 1.0, 0.9]
    assert lfp.quotas.drop([100] * 4, recall, 40).tolist() == [0, 0, 0, 40]
    support = torch.tensor([20] * 4)
    counts = ClassCounts(torch.tensor([20, 20, 20, 18]), support)
    shrunk = counts.shrunk_recall(lfp.DataPruning(0.3, 1).settings.shrinkage)
    assert lfp.quotas.drop([100] * 4, shrunk, 40).min() > 0


@pytest.mark.parametrize("keep", ["random", "hard"])
@pytest.mark.parametrize("score", [lfp.scores.el2n, lfp.scores.aum])
def test_quotas_by_difficulty_need_no_validation(score: Any, keep: Any) -> None:
    """AUM has scores below 0."""
    callback = fit(
        score=score, keep=keep, quota=lfp.quotas.difficulty, trainer={"limit_val_batches": 0}
    )
    seen = callback.dynamics
    difficulty = lfp.quotas.class_difficulty(score(seen), seen.target)
    expected = lfp.quotas.difficulty(torch.bincount(Blobs().y), difficulty, 41)
    assert torch.equal(callback.quota, expected)
    kept = lfp.select(
        seen.target,
        expected,
        score=score(seen) if keep == "hard" else None,
        keep=keep,
        seed=callback.selection.seed,
    )
    assert torch.equal(callback.selection.indices, kept.indices)


def test_dry_run_assumes_equal_difficulties(capsys: pytest.CaptureFixture[str]) -> None:
    fit(score=lfp.scores.el2n, quota=lfp.quotas.difficulty, dry_run=True)
    sizes = torch.bincount(Blobs().y)
    printed = capsys.readouterr().out
    for kept in lfp.quotas.proportional(sizes, 41).tolist():
        assert f" {kept} " in printed


def test_cutoff_and_pool_reach_every_draw() -> None:
    limits: dict[str, Any] = {"keep": "hard", "cutoff": 0.2, "pool": 0.8}
    callback = fit(score=lfp.scores.el2n, quota=lfp.quotas.balanced, seed=5, **limits)
    seen, seed = callback.dynamics, callback.selection.seed
    assert seed == 7  # the third draw: one after the warm-up, one after each pruned epoch
    kept = lfp.select(seen.target, callback.quota, score=lfp.scores.el2n(seen), seed=seed, **limits)
    assert torch.equal(callback.selection.indices, kept.indices)
    assert callback.record.selection.keep == "hard, cutoff 0.2, pool 0.8"
    assert callback.record.settings["cutoff"] == 0.2
    other = lfp.DataPruning(0.4, 2, score=lfp.scores.el2n, keep="hard", cutoff=0.3).settings
    with pytest.raises(ValueError, match=r"`cutoff`=0.3, .* where the checkpoint has 0.2"):
        other.check_resumed(callback.settings.to_resume() | {"quota": "drop"})


def infinite(seen: Any) -> Any:
    """Infinitely hard where the class is 3."""
    return lfp.scores.el2n(seen).masked_fill(seen.target == 3, math.inf)


def test_the_warm_up_ends_with_what_the_score_alone_would_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines: list[str] = []
    monkeypatch.setattr("lightning_fairprune.callbacks._data.run.rank_zero_info", lines.append)
    fit(score=infinite, keep="hard", quota=lfp.quotas.balanced)
    fit()
    said = [line for line in lines if "the score alone" in line]
    assert len(said) == 1  # not without a score
    assert "and 100% of class 3; the classes explain" in said[0]


def test_floor_reaches_the_quotas() -> None:
    callback = fit(floor=8)
    for estimate in callback.history:
        assert int(estimate.quota.min()) >= 8


def test_selection_is_the_one_of_the_pure_functions() -> None:
    static: dict[str, Any] = {"resample_every": None, "update_every": None}
    callback = fit(score=lfp.scores.el2n, keep="hard", seed=5, **static)
    seen, selection = callback.dynamics, callback.selection
    assert callback.quota is not None
    again = lfp.select(
        seen.target, callback.quota, score=lfp.scores.el2n(seen), keep="hard", seed=5
    )
    assert torch.equal(selection.indices, again.indices)
    assert torch.equal(seen.target, Blobs().y)
    assert seen.num_epochs == 2


@pytest.mark.parametrize(
    ("resample_every", "update_every", "estimates", "draws"),
    [(None, None, 1, 1), (1, None, 1, 4), (None, 2, 2, 2), (2, None, 1, 2), (1, 1, 4, 4)],
)
def test_rhythm(
    resample_every: int | None, update_every: int | None, estimates: int, draws: int
) -> None:
    probe = Probe()
    callback = fit(
        others=(probe,),
        resample_every=resample_every,
        update_every=update_every,
        warmup_epochs=1,
        trainer={"max_epochs": 4},
    )
    assert len(callback.history) == estimates
    assert callback.selection.seed == draws - 1
    subsets = {frozenset(probe.samples[epoch]) for epoch in (1, 2, 3)}
    assert len(subsets) == {1: 1, 2: 2, 4: 3}[draws]


def test_without_quotas_the_score_alone_decides() -> None:
    static: dict[str, Any] = {"resample_every": None, "update_every": None}
    callback = fit(score=lfp.scores.el2n, keep="hard", quota=None, **static)
    seen, selection = callback.dynamics, callback.selection
    assert seen is not None
    hardest = lfp.scores.el2n(seen).argsort(descending=True, stable=True)[:41].sort().values
    assert torch.equal(selection.indices, hardest)
    assert callback.quota is None


def test_density_one_keeps_all() -> None:
    callback = fit(density=1.0)
    assert callback.selection.indices.tolist() == list(range(103))


def test_same_seed_same_subset_and_another_seed_another() -> None:
    first, second, other = (fit(seed=s).selection for s in (3, 3, 4))
    assert torch.equal(first.indices, second.indices)
    assert not torch.equal(first.indices, other.indices)


def test_quotas_from_the_second_validation_loader() -> None:
    class TwoLoaders(Data):
        def val_dataloader(self) -> Any:
            return [DataLoader(Blobs(40, seed=3), 20), DataLoader(self.val, 20)]

    class Takes(Model):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            super().validation_step(batch, batch_idx)

    recalls = Recalls()
    callback = fit(
        model=Takes(),
        data=TwoLoaders(),
        others=(recalls,),
        recall_dataloader=1,
        recall_window=1,
        shrinkage=0.0,
    )
    recall = callback.history[0].recall
    torch.testing.assert_close(recall, recalls.counts[1].recall)


def test_only_what_the_score_reads_is_recorded() -> None:
    random = fit().dynamics
    scored = fit(score=lfp.scores.forgetting, keep="hard").dynamics
    assert list(random.signals) == []
    assert list(scored.signals) == ["correct"]


@pytest.mark.parametrize(("after", "rhythm"), [("continue", (1, 2)), ("restart", (None, None))])
def test_automatic_rhythm(after: Any, rhythm: tuple[int | None, int | None]) -> None:
    callback = lfp.DataPruning(0.3, 1, after=after)
    assert (callback.settings.resample_every, callback.settings.update_every) == rhythm


# ---------------------------------------------------------------------------------------- restart


class Scheduled(Model):
    """With everything that a restart must put back."""

    def __init__(self, interval: str = "epoch") -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(users.DIM)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64), persistent=False)
        self.interval = interval
        self.rates: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.steps += 1
        self.rates.append(self.optimizers().param_groups[0]["lr"])
        return F.cross_entropy(self.net(self.norm(batch[0])), batch[1])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        return [optimizer], [{"scheduler": schedule, "interval": self.interval}]


class StateAtEpoch(users.pl.Callback):
    def __init__(self) -> None:
        self.states: list[dict[str, torch.Tensor]] = []
        self.momenta: list[int] = []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, i: int) -> None:
        if i == 0:
            tensors = dict(module.named_parameters()) | dict(module.named_buffers())
            self.states.append({k: v.detach().clone() for k, v in tensors.items()})
            self.momenta.append(len(trainer.optimizers[0].state))


@pytest.mark.parametrize("after", ["continue", "restart"])
def test_restart_puts_everything_back(after: str) -> None:
    model, seen = Scheduled(), StateAtEpoch()
    fit(model=model, others=(seen,), after=after, density=0.39)  # 40 samples
    same = [torch.equal(seen.states[0][name], seen.states[2][name]) for name in seen.states[0]]
    if after == "restart":
        assert all(same)
        assert seen.momenta[2] == 0  # no momentum from the warm-up
        rates = [model.rates[0], model.rates[11], model.rates[22], model.rates[26]]
        assert rates == pytest.approx([0.1, 0.05, 0.1, 0.05])
    else:
        assert not any(same)
        assert seen.momenta[2] > 0
        assert model.rates[22] == pytest.approx(0.025)


def test_restarted_model_is_the_one_trained_on_the_subset_alone() -> None:
    """Two phases in one fit equal a second fit on the saved selection, sample for sample."""
    users.pl.seed_everything(1, verbose=False)
    start = Model()
    copy = Model()
    copy.load_state_dict(start.state_dict())
    probe = Probe()
    callback = lfp.DataPruning(
        0.4, 2, after="restart", resample_every=None, update_every=None, seed=7
    )
    users.trainer(callbacks=[callback, probe]).fit(start, datamodule=Data())
    assert callback.selection is not None

    second = Probe()
    data = lfp.FairPruneDataModule(Data(), selection=callback.selection, seed=7)
    users.trainer(max_epochs=2, callbacks=[second]).fit(copy, datamodule=data)
    for epoch in (0, 1):
        assert set(second.samples[epoch]) == set(probe.samples[epoch + 2])
    # The order differs with the number of the epoch; within float error the models need not agree.
    assert len(second.samples[0]) == len(probe.samples[2]) == 41


# --------------------------------------------------------------------------------------- schedule


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("after", ["continue", "restart"])
@pytest.mark.parametrize("form", ["wrapper", "callback"])
def test_planned_steps_are_the_steps_taken(accumulate: int, after: str, form: str) -> None:
    class Linear(Model):
        def configure_optimizers(self) -> Any:
            self.planned = lfp.planned_stepping_batches(self.trainer)
            self.estimated = self.trainer.estimated_stepping_batches
            optimizer = torch.optim.SGD(self.parameters(), 0.1)
            schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, self.planned)
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    model, data = Linear(), Data()
    callback = lfp.DataPruning(0.4, 2, after=after)
    t = users.trainer(callbacks=[callback], accumulate_grad_batches=accumulate, max_epochs=7)
    t.fit(model, datamodule=lfp.FairPruneDataModule(data) if form == "wrapper" else data)
    warm, short = 2 * math.ceil(11 / accumulate), 5 * math.ceil(5 / accumulate)
    assert t.global_step == warm + short
    assert model.planned == (short if after == "restart" else warm + short)
    assert model.estimated == 7 * math.ceil(11 / accumulate)
    assert t.optimizers[0].param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)


def test_planned_steps_without_pruning_and_under_max_steps() -> None:
    class Plans(Model):
        def configure_optimizers(self) -> Any:
            self.planned = lfp.planned_stepping_batches(self.trainer)
            return super().configure_optimizers()

    model = Plans()
    users.trainer().fit(model, datamodule=Data())
    assert model.planned == 44
    fit(model=model, trainer={"max_steps": 25})
    assert model.planned == 25
    fit(model=model, trainer={"max_steps": 30, "max_epochs": -1})
    assert model.planned == 30


def test_stepwise_schedule_that_was_not_planned_is_told() -> None:
    with pytest.warns(UserWarning, match="planned_stepping_batches"):
        fit(model=Scheduled("step"), density=0.39)


# ----------------------------------------------------------------------------------------- dry run


def test_dry_run_prints_and_stops_before_training(capsys: pytest.CaptureFixture[str]) -> None:
    probe = Probe()
    callback = fit(
        others=(probe,),
        data=lfp.FairPruneDataModule(Data()),
        dry_run=[0.9, 0.8, 0.5, 0.1],
        score=lfp.scores.el2n,
        keep="hard",
        trainer={"min_epochs": 3},
    )
    printed = capsys.readouterr().out
    assert probe.samples == {}
    assert callback.selection is None
    quota = lfp.quotas.drop(torch.bincount(Blobs().y), [0.9, 0.8, 0.5, 0.1], 41)
    assert "would keep 41 of 103 samples" in printed
    for k, kept in enumerate(quota.tolist()):
        row = next(line for line in printed.splitlines() if line.strip("│ ").startswith(f"{k} "))
        assert f" {kept} " in row
    assert "el2n; 7 bytes a sample" in printed
    assert "11 in 2 warm-up epochs, then 5" in printed
    assert "batches in 4 epochs: 32, 73% of the 44" in printed


def test_dry_run_needs_as_many_recalls_as_classes() -> None:
    with pytest.raises(ValueError, match="one recall for each of 4 classes, got 2"):
        fit(dry_run=[0.1, 0.2])


# --------------------------------------------------------------------------------------- epilogue


def test_nothing_is_left_on_the_users_objects() -> None:
    model, data = Model(), Data()
    fit(model=model, data=data)
    for owner in (model, data):
        assert not {"train_dataloader", "on_before_batch_transfer"} & set(vars(owner))


def test_numbers_of_numpy(tmp_path: Path) -> None:
    numbers = {"density": np.float64(0.4), "seed": np.int64(3), "warmup_epochs": np.int64(2)}
    callback = lfp.DataPruning(**numbers)
    trainer = users.trainer(callbacks=[callback])
    trainer.fit(users.Model(), datamodule=users.Data())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    torch.load(tmp_path / "last.ckpt", weights_only=True)


# --------------------------------------------------------------------------------- other stages


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("stage", ["validate", "predict"])
def test_an_earlier_checkpoint_changes_nothing_outside_of_a_fit(
    same: bool, stage: str, tmp_path: Path
) -> None:
    callback, model, path = lfp.DataPruning(0.4, 1), Model(), tmp_path / "early.ckpt"

    class Early(users.pl.Callback):
        def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
            if trainer.current_epoch == 1:
                trainer.save_checkpoint(path)

    model.predict_step = lambda batch, *_, **__: model(batch[0])  # type: ignore[attr-defined]
    trainer = users.trainer(callbacks=[callback, Early()])
    trainer.fit(model, datamodule=Data())
    before = callback.selection, callback.quota, list(callback.history), callback.dynamics
    if not same:
        trainer = users.trainer(callbacks=[callback])
    getattr(trainer, stage)(model, DataLoader(Blobs(60, seed=1), batch_size=20), ckpt_path=path)
    assert callback.selection is before[0]
    assert callback.quota is before[1]
    assert callback.history == before[2]
    assert callback.pruned
