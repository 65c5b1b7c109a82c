"""One sentence, at fit start, for everything that pruning cannot work with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import users
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    Sampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
)
from users import NUM_CLASSES, Blobs, Data, Model

import lightning_fairprune as lfp
from lightning_fairprune.callbacks._data import checks as _checks


def fit(
    *, data: Any = None, model: Any = None, trainer: dict[str, Any] | None = None, **prune: Any
) -> lfp.DataPruning:
    callback = lfp.DataPruning(**({"density": 0.4, "warmup_epochs": 2} | prune))
    t = users.trainer(callbacks=[callback], **(trainer or {}))
    t.fit(Model() if model is None else model, datamodule=Data() if data is None else data)
    return callback


# ------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"density": 0}, r"`density` must be in \(0, 1\], got 0"),
        ({"density": 1.5}, r"`density` must be in \(0, 1\], got 1.5"),
        ({"density": float("nan")}, r"`density` must be in \(0, 1\], got nan"),
        ({"warmup_epochs": 0}, "`warmup_epochs` must be at least 1, got 0"),
        ({"warmup_epochs": 1.5}, "whole number of epochs or a fraction"),
        ({"warmup_epochs": -2}, "at least 1, got -2"),
        ({"keep": "best"}, "`keep` must be one of random, hard, easy, stratified, got 'best'"),
        ({"after": "stop"}, "`after` must be one of continue, restart, got 'stop'"),
        ({"keep": "hard"}, "need a score, got score=None and keep='hard'"),
        ({"score": lfp.scores.el2n}, "`score` selects samples only with"),
        ({"resample_every": 0}, "`resample_every` must be None or at least 1"),
        ({"update_every": 0}, "`update_every` must be None or at least 1"),
        ({"recall_window": 0}, "`recall_window` must be at least 1"),
        ({"shrinkage": -1.0}, "`shrinkage` must be 0 or more"),
        ({"floor": -1}, "`floor` must be 0 or more"),
        ({"quota": lfp.quotas.rcap}, r"rcap also needs 'loss': give it with functools.partial"),
    ],
)
def test_arguments(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        lfp.DataPruning(**({"density": 0.3, "warmup_epochs": 2} | arguments))


# ------------------------------------------------------------------------------- length of training


@pytest.mark.parametrize(
    ("prune", "trainer", "match"),
    [
        ({"warmup_epochs": 4}, {}, "must end before training does, got 4 of max_epochs=4"),
        ({"warmup_epochs": 0.9}, {}, "must end before training does, got 4 of max_epochs=4"),
        ({"warmup_epochs": 0.5}, {"max_epochs": -1, "max_steps": 99}, "fraction of max_epochs"),
        (
            {"warmup_epochs": 3},
            {"max_epochs": -1, "max_steps": 33},
            r"got 3 epochs of 11 batches \(33 steps\) with max_steps=33",
        ),
        ({}, {"val_check_interval": 6}, "exceeds the 5 batches of a pruned epoch"),
        ({}, {"limit_val_batches": 0}, "`quota` drop needs the recall of each class"),
        ({}, {"check_val_every_n_epoch": 3}, "every 3 epochs, later than the warm-up of 2"),
        ({}, {"overfit_batches": 2}, "nothing to prune"),
    ],
)
def test_trainer_settings(prune: dict[str, Any], trainer: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        fit(trainer=trainer, **prune)


def test_fraction_of_training_is_rounded_to_epochs() -> None:
    assert fit(warmup_epochs=0.4).run.warmup == 2


def test_val_check_interval_across_epochs_is_fine() -> None:
    fit(trainer={"val_check_interval": 6, "check_val_every_n_epoch": None})


def test_fast_dev_run_works_whatever_the_warmup() -> None:
    assert fit(trainer={"fast_dev_run": True}, warmup_epochs=10).selection is None


def test_two_data_prunings() -> None:
    first, second = lfp.DataPruning(0.3, 1), lfp.DataPruning(0.4, 1)
    with pytest.raises(RuntimeError, match="more than one stateful callback of type `DataPruning`"):
        users.trainer(callbacks=[first, second])
    late = users.trainer(callbacks=[first])
    late.callbacks.append(second)
    with pytest.raises(ValueError, match="one DataPruning callback, got 2"):
        late.fit(Model(), datamodule=Data())


# -------------------------------------------------------------------------------------------- data


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([])


class TwiceSampler(RandomSampler):
    def __iter__(self) -> Any:
        return iter([i for i in super().__iter__() for _ in range(2)])


class OddSampler(Sampler[int]):
    def __iter__(self) -> Any:
        return iter(range(1, 103, 2))

    def __len__(self) -> int:
        return 51


def drop_a_sample(samples: list[Any]) -> Any:
    return torch.utils.data.default_collate(samples[1:])


LOADERS: dict[str, tuple[Callable[[Any], Any], type[Exception], str]] = {
    "iterable": (lambda d: DataLoader(Stream()), TypeError, r"iterable dataset \(Stream\)"),
    "two_loaders": (lambda d: [DataLoader(d), DataLoader(d)], TypeError, "one torch DataLoader"),
    "sampler": (
        lambda d: DataLoader(d, 10, sampler=OddSampler()),
        TypeError,
        "sampler of type OddSampler cannot be restricted",
    ),
    "changed_sampler": (
        lambda d: DataLoader(d, 10, sampler=TwiceSampler(d)),
        TypeError,
        "sampler of type TwiceSampler cannot be restricted",
    ),
    "batch_sampler": (
        lambda d: DataLoader(d, batch_sampler=[[0, 1], [2, 3]]),
        TypeError,
        r"custom batch sampler \(list\)",
    ),
    "no_batch_size": (
        lambda d: DataLoader(d, batch_size=None, sampler=BatchSampler(RandomSampler(d), 5, False)),
        TypeError,
        r"custom batch sampler \(BatchSampler\)",
    ),
    "collate": (
        lambda d: DataLoader(d, 10, collate_fn=drop_a_sample),
        ValueError,
        "the loss saw 9 samples of a batch with 10 indices: the collate",
    ),
    "less_than_a_batch": (
        lambda d: DataLoader(d, 50, drop_last=True),
        ValueError,
        r"keeps 41 samples, which is less than one batch of 50",
    ),
}


@pytest.mark.parametrize("name", LOADERS)
def test_loaders(name: str) -> None:
    make, error, match = LOADERS[name]
    data = Data()
    data.train_dataloader = lambda: make(data.train)
    with pytest.raises(error, match=match):
        fit(data=data)


def test_loaders_passed_to_fit() -> None:
    t = users.trainer(callbacks=[lfp.DataPruning(0.4, 2)])
    with pytest.raises(TypeError, match=r"loaders passed to trainer.fit\(\) cannot be pruned"):
        t.fit(Model(), DataLoader(Blobs(), 10), DataLoader(Blobs(60), 10))


@pytest.mark.filterwarnings("ignore:.*were never observed in the warm-up")
def test_weighted_sampler_is_restricted_by_its_weights() -> None:
    data = Data()
    weights = torch.ones(103)
    weights[:20] = 0
    data.train_dataloader = lambda: DataLoader(
        data.train, 10, sampler=WeightedRandomSampler(weights, 206)
    )
    callback = fit(data=data, warmup_epochs=3)
    assert callback.selection is not None
    assert int(callback.selection.indices.min()) >= 20
    assert len(callback.run.source.sampler) == 82  # two draws per sample, as before


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator")
def test_no_validation_loader() -> None:
    inner = lfp.FairPruneDataModule(
        users.pl.LightningDataModule.from_datasets(Blobs(), batch_size=10)
    )
    for source in (inner, inner.datamodule):
        with pytest.raises(ValueError, match="`quota` drop needs the recall of each class"):
            fit(data=source)
    assert fit(data=inner, quota=lfp.quotas.balanced).selection is not None


def test_wrapper_with_a_selection_of_its_own() -> None:
    made = fit().selection
    assert made is not None
    with pytest.raises(ValueError, match="both decide which samples"):
        fit(data=lfp.FairPruneDataModule(Data(), selection=made))
    with pytest.raises(ValueError, match="made from 103 samples, the training set has 90"):
        users.trainer().fit(Model(), lfp.FairPruneDataModule(Data(n=90), selection=made))


def test_wrapped_object_is_no_datamodule() -> None:
    with pytest.raises(TypeError, match="`datamodule` must be a lightning"):
        lfp.FairPruneDataModule(Blobs())  # type: ignore[arg-type]


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
    assert callback.selection is not None
    assert int(callback.selection.sizes.sum()) == 103


# -------------------------------------------------------------------------------------------- steps


class Iterates(Model):
    def training_step(self, dataloader_iter: Any) -> Any:  # type: ignore[override]
        raise AssertionError


class Soft(Model):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        return F.cross_entropy(self(x), F.one_hot(y, NUM_CLASSES).float())


class MultiLabel(Model):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        return F.binary_cross_entropy_with_logits(self(x), F.one_hot(y, NUM_CLASSES).float())


class SoftOutputs(Model):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        logits, target = self(x), F.one_hot(y, NUM_CLASSES).float()
        return {"loss": F.cross_entropy(logits, target), "logits": logits, "target": target}


class SilentValidation(Model):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self(batch[0])


class Segments(Model):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        logits = self(x)[:, :, None].expand(-1, -1, 3)
        return F.cross_entropy(logits, y[:, None].expand(-1, 3))


STEPS: dict[str, tuple[type[Model], type[Exception], str]] = {
    "dataloader_iter": (Iterates, TypeError, r"training_step\(dataloader_iter\)"),
    "soft": (Soft, ValueError, "one class index per sample, got class probabilities"),
    "soft_outputs": (SoftOutputs, ValueError, "soft and multi-label targets have no class"),
    "no_cross_entropy": (MultiLabel, ValueError, "training_step: .*never called .*cross_entropy"),
    "silent_validation": (SilentValidation, ValueError, "validation_step: .*never called"),
    "segments": (Segments, ValueError, r"got logits \[10, 4, 3\] and targets \[10, 3\]"),
}


@pytest.mark.filterwarnings("ignore:You are using the `dataloader_iter` step flavor")
@pytest.mark.parametrize("name", STEPS)
def test_steps(name: str) -> None:
    model, error, match = STEPS[name]
    with pytest.raises(error, match=match):
        fit(model=model())


def test_silent_validation_is_told_before_the_first_training_step() -> None:
    class Counts(SilentValidation):
        steps = 0

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.steps += 1
            return super().training_step(batch, batch_idx)

    model = Counts()
    with pytest.raises(ValueError, match="validation_step"):
        fit(model=model, trainer={"num_sanity_val_steps": 1})
    assert model.steps == 0


class Offset(Model):
    """Labels begin at 1 although there are as many logits as classes; the loss clamps them."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        logits = self(x)
        loss = F.cross_entropy(logits, y)
        return {"loss": loss, "logits": logits, "target": y + 1}


def test_labels_out_of_range() -> None:
    with pytest.raises(ValueError, match=r"every target must be in \[0, 4\), got 4 for sample \d+"):
        fit(model=Offset())


class BreaksAt(Model):
    """Sample 17 has no finite logits in epoch 1."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        logits = self(x)
        hit = ((x[:, 0] * 1000).round() == 17) & (self.current_epoch == 1)
        logits = torch.where(hit[:, None], torch.nan, logits)
        return {"loss": F.cross_entropy(self(x), y), "logits": logits, "target": y}


def test_nan_logits_name_sample_and_epoch() -> None:
    with pytest.raises(
        ValueError, match="`el2n` is nan for 1 samples in epoch 1, first for sample 17"
    ):
        fit(model=BreaksAt(), score=lfp.scores.el2n, keep="hard")


def test_last_batch_of_one_sample_is_told_before_batch_norm_fails_on_it() -> None:
    class Normalised(Model):
        def __init__(self) -> None:
            super().__init__()
            self.net.insert(1, torch.nn.BatchNorm1d(16))

    with pytest.raises(ValueError, match=r"epoch of 41 samples ends in .* single sample.*`net.1`"):
        fit(model=Normalised())
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
    assert callback.dynamics is not None
    assert callback.dynamics.observed.sum(1).tolist() == [103 - 4 * 10, 103]


class BreaksInValidation(Model):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        F.cross_entropy(self(x) * torch.nan, y)


def test_nan_logits_in_validation() -> None:
    with pytest.raises(ValueError, match="logits of 60 validation samples are not finite"):
        fit(model=BreaksInValidation())


# ---------------------------------------------------------------------------- functions of the user


def test_score_that_fails_is_told_before_training() -> None:
    def broken(seen: lfp.Dynamics) -> torch.Tensor:
        return seen.signal("energy")[-1]

    with pytest.raises(ValueError, match=r"`score` .*broken fails.*'energy' was not recorded"):
        fit(score=broken, keep="hard")


@pytest.mark.parametrize(
    ("quota", "match"),
    [
        (lambda sizes, budget: sizes, "`quota` must sum to the budget 41, got 103"),
        (
            lambda sizes, budget: sizes.float(),
            r"`quota` must return int64 \[4\], got torch.float32",
        ),
        (lambda sizes, budget: [41], r"`quota` must return int64 \[4\], got list"),
    ],
)
def test_quota_that_is_none(quota: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        fit(quota=quota)


def test_restart_needs_weights_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    # Sharded strategies need a GPU; the check looks at the type alone.
    t = users.trainer()
    t.datamodule = Data()
    monkeypatch.setattr(users.pl.Trainer, "strategy", type("FSDPStrategy", (), {})())
    monkeypatch.setattr(users.pl.Trainer, "enable_validation", True)
    with pytest.raises(ValueError, match="one device and with DDP, got FSDPStrategy"):
        _checks.trainer(lfp.DataPruning(0.4, 2, after="restart").settings, t, Model())
