"""The estimate of wrong labels in a fit: what the warm-up records, resumes, ranks, files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import ranks
import scenario
import torch
import users
from lightning.pytorch.loggers import CSVLogger
from test_resume import saved

import lightning_fairprune as lfp
from lightning_fairprune._observe.recorder import EpochRecorder
from lightning_fairprune.label_errors import LabelErrors, wrong_labels

MINIMAX: dict[str, Any] = {
    "prune": {"quota": "minimax", "warmup_epochs": 4},
    "trainer": {"max_epochs": 5},
}
pytestmark = pytest.mark.filterwarnings(
    "ignore:Be aware that when using `ckpt_path`, callbacks used"
)


class Wrong(users.Data):
    """Classes far from each other; a third of the samples labelled 1 are of class 0."""

    def setup(self, stage: str) -> None:
        super().setup(stage)
        generator = torch.Generator().manual_seed(123)
        centre = torch.randn(users.NUM_CLASSES, users.DIM, generator=generator)
        for part in (self.train, self.val):
            part.x += 1.4 * centre[part.y]
        of_first = (self.train.y == 0).nonzero().squeeze(1)
        number = int((self.train.y == 1).sum()) // 2
        self.wrong = of_first[:number]
        self.train.y[self.wrong] = 1


def fit(data: users.Data, folder: Path | None = None, **options: Any) -> lfp.DataPruning:
    pl.seed_everything(0, verbose=False)
    given: dict[str, Any] = {"density": 0.5, "warmup_epochs": 6, "quota": lfp.quotas.Minimax()}
    callback = lfp.DataPruning(**given | options)
    logger = False if folder is None else CSVLogger(folder, name="", version="")
    trainer = users.trainer(
        max_epochs=1 + int(callback.settings.warmup_epochs), callbacks=[callback], logger=logger
    )
    trainer.fit(users.Model(), datamodule=data)
    return callback


def test_wrong_labels_of_a_class_are_found_and_saved(tmp_path: Path) -> None:
    data = Wrong(n=600)
    callback = fit(data, tmp_path)
    errors = callback.label_errors
    assert errors is not None
    assert torch.equal(errors.sizes, data.train.y.bincount(minlength=users.NUM_CLASSES))
    assert int(errors.share.nan_to_num(0).argmax()) == 1
    of_class = errors.suspects[errors.given == 1]
    assert torch.isin(of_class, data.wrong).double().mean() > 0.6
    assert "most of these like class 0" in errors.about(1)

    read = lfp.PruningRecord.load(tmp_path).label_errors
    assert read is not None
    for name, value in errors.tensors().items():
        assert torch.equal(getattr(read, name), value), name
    about = json.loads((tmp_path / "fairprune" / "pruning.json").read_text())["label_errors"]
    assert about["share"] == pytest.approx(errors.share.tolist())
    assert about["doubtful"] == errors.doubtful.tolist()


def test_it_is_what_the_function_says_of_the_dynamics() -> None:
    callback = fit(Wrong(n=200))
    assert callback.dynamics is not None
    again = wrong_labels(callback.dynamics, users.NUM_CLASSES)
    assert callback.label_errors is not None
    for name, value in callback.label_errors.tensors().items():
        assert torch.equal(getattr(again, name), value), name


@pytest.mark.parametrize(
    "options",
    [
        {"quota": lfp.quotas.drop},
        {"quota": None},
        {"warmup_epochs": 3},
        {"group_by": lambda batch: batch[1] % 2},
    ],
    ids=["quotas that do not grow", "no quotas", "too few epochs", "groups"],
)
def test_fits_without_an_estimate(options: dict[str, Any], tmp_path: Path) -> None:
    callback = fit(users.Data(), tmp_path, **options)
    assert callback.label_errors is None
    assert lfp.PruningRecord.load(tmp_path).label_errors is None


def test_recording_changes_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    full = scenario.run(**MINIMAX)
    assert full["label_errors"] is not None
    monkeypatch.setattr("lightning_fairprune.label_errors.SIGNALS", ())
    without = scenario.run(**MINIMAX)
    for key in ("kept", "quota", "history", "weights", "samples"):
        assert full[key] == without[key], key


@pytest.mark.parametrize("every", ["epoch", "step"])
def test_a_resumed_fit_estimates_the_same(every: str, tmp_path: Path) -> None:
    when = {
        "epoch": {"save_on_train_epoch_end": True},
        "step": {"every_n_train_steps": 9, "save_on_train_epoch_end": False},
    }
    full = scenario.run(**MINIMAX, checkpoint=when[every], folder=str(tmp_path))
    assert full["label_errors"] is not None
    checkpoints = saved(tmp_path)
    assert len(checkpoints) > 4
    for path in checkpoints:
        assert scenario.run(**MINIMAX, resume=path)["label_errors"] == full["label_errors"], path


def test_two_ranks_estimate_the_same(tmp_path: Path) -> None:
    more: dict[str, Any] = MINIMAX | {"trainer": {"max_epochs": 5, "devices": 2, "strategy": "ddp"}}
    [[one, other]] = ranks.launch(scenario.__file__, [more | {"batch_size": 5}], tmp_path)
    assert one["label_errors"] is not None
    assert one["label_errors"] == other["label_errors"]
    assert sum(one["label_errors"]["sizes"]) == 103


def test_logits_that_are_not_finite_do_not_stop_a_fit() -> None:
    """A masked class, or a step that a loss scaler skips, gives what no signal of a score may be."""
    logits = torch.tensor([[0.0, -torch.inf], [torch.nan, 0.0], [-torch.inf, 0.0], [3.0, 0.0]])
    recorder = EpochRecorder(4, besides=("loss", "margin", "rival"))
    recorder.update(torch.arange(4), logits, torch.zeros(4).long())
    recorder.finish_epoch(0)
    errors = wrong_labels(recorder.dynamics(), 2)
    assert errors.sizes.tolist() == [4, 0]
    assert errors.confident.tolist() == [2, 0]


def test_a_checkpoint_of_a_version_that_did_not_record() -> None:
    batch = torch.arange(4), torch.randn(4, 3), torch.zeros(4).long()
    older = EpochRecorder(4, ("el2n",))
    older.update(*batch)
    older.finish_epoch(0)
    recorder = EpochRecorder(4, ("el2n",), besides=("loss", "margin", "rival"))
    recorder.load_state_dict(older.state_dict())
    recorder.update(*batch)
    recorder.finish_epoch(1)
    assert list(recorder.dynamics().signals) == ["el2n"]


def test_a_suspect_that_is_no_sample() -> None:
    one = torch.tensor([1])
    errors = LabelErrors(torch.tensor([2]), one, torch.tensor([2]), one * 0, one * 0)
    chosen = lfp.select(torch.tensor([0, 0]), one)
    with pytest.raises(ValueError, match="suspects"):
        lfp.PruningRecord(chosen, torch.tensor([0, 0]), label_errors=errors)
