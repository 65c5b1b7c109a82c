"""Fits that look odd and work, and what can only be told or warned of during the fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import users
from torch.utils.data import (
    DataLoader,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
)
from users import Blobs, Data, Model

import lightning_fairprune as lfp
from lightning_fairprune.callbacks._data import checks as _checks


def fit(
    *, data: Any = None, model: Any = None, trainer: dict[str, Any] | None = None, **prune: Any
) -> lfp.DataPruning:
    callback = lfp.DataPruning(**({"density": 0.4, "warmup_epochs": 2} | prune))
    t = users.trainer(callbacks=[callback], **(trainer or {}))
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


# ---------------------------------------------------------------------------- functions of the user


def test_restart_needs_weights_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    # Sharded strategies need a GPU; the check looks at the type alone.
    t = users.trainer()
    t.datamodule = Data()
    monkeypatch.setattr(users.pl.Trainer, "strategy", type("FSDPStrategy", (), {})())
    monkeypatch.setattr(users.pl.Trainer, "enable_validation", True)
    with pytest.raises(ValueError, match="one device and with DDP, got FSDPStrategy"):
        _checks.trainer(lfp.DataPruning(0.4, 2, after="restart").settings, t, Model())
