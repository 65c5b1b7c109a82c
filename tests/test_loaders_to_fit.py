"""Loaders that are given to trainer.fit() are pruned as those of a module or data module are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import scenario
import torch
import users
from lightning.pytorch.utilities import CombinedLoader
from test_resume import check as check_resumed
from test_resume import saved
from test_swap import KEPT, TRAINERS, N, check, launch, strings
from torch.utils.data import DataLoader

import lightning_fairprune as lfp

STATIC = {"resample_every": None, "update_every": None}
ALIKE = ("samples", "kept", "quota", "history", "weights")
pytestmark = [
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used"),
    pytest.mark.filterwarnings("ignore:.*were never observed in the warm-up"),
]


@pytest.mark.parametrize("form", scenario.GIVEN)
@pytest.mark.parametrize("name", TRAINERS)
def test_loader_given_to_fit_is_pruned(name: str, form: str) -> None:
    record = strings(scenario.run(form=form, trainer=TRAINERS[name]))
    check(record, TRAINERS[name])
    of_data_module = strings(scenario.run(form="datamodule", trainer=TRAINERS[name]))
    for what in ALIKE:
        assert record[what] == of_data_module[what], what


@pytest.mark.parametrize("form", scenario.GIVEN)
@pytest.mark.parametrize("workers", [0, 2])
def test_ids_of_every_epoch_are_the_selection(form: str, workers: int) -> None:
    record = scenario.run(form=form, workers=workers, prune=STATIC)
    for epoch in (0, 1):
        assert sorted(record["samples"][epoch]) == list(range(N))
    for epoch in (2, 3):
        assert sorted(record["samples"][epoch]) == record["kept"]


@pytest.mark.parametrize("form", scenario.GIVEN)
def test_resumed_at_every_step(form: str, tmp_path: Path) -> None:
    prune = {"score": "el2n", "keep": "hard", "quota": "minimax", "recall_window": 2}
    settings: dict[str, Any] = {"form": form, "prune": prune}
    checkpoint = {"every_n_train_steps": 1, "save_on_train_epoch_end": False}
    full = scenario.run(**settings, checkpoint=checkpoint, folder=str(tmp_path))
    for path in saved(tmp_path, {1, 10, 12, 23, 26, 28}):
        check_resumed(full, scenario.run(**settings, resume=path), path)


def test_two_ranks(tmp_path: Path) -> None:
    ddp: dict[str, Any] = {"trainer": {"devices": 2, "strategy": "ddp"}, "batch_size": 5}
    checkpoint = {"every_n_train_steps": 1, "save_on_train_epoch_end": False}
    fits: dict[Any, dict[str, Any]] = {"datamodule": ddp | {"form": "datamodule"}}
    for form in ("given", "given_dict"):
        folder = {"checkpoint": checkpoint, "folder": str(tmp_path / form)}
        fits[form] = ddp | {"form": form} | folder
    found = launch(fits, tmp_path)
    for form in ("given", "given_dict"):
        for rank in (0, 1):
            for what in ALIKE:
                assert found[form][rank][what] == found["datamodule"][rank][what], what
        shards = [set(record["samples"]["2"]) for record in found[form]]
        assert len(shards[0] | shards[1]) == KEPT
    again = {
        (form, path): ddp | {"form": form, "resume": path}
        for form in ("given", "given_dict")
        for path in saved(tmp_path / form, {12, 25})
    }
    for (form, path), records in launch(again, tmp_path).items():
        for rank in (0, 1):
            check_resumed(found[form][rank], records[rank], path)


class Counts(pl.Callback):
    """Notes what form the batches of the steps have."""

    def __init__(self) -> None:
        self.forms: set[str] = set()

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self.forms.add(str(torch.utils._pytree.tree_map(lambda leaf: type(leaf).__name__, batch)))


@pytest.mark.parametrize(
    ("users_form", "expected"),
    [
        (lambda loader: loader, "['Tensor', 'Tensor']"),
        (lambda loader: {"a": loader}, "{'a': ['Tensor', 'Tensor']}"),
        (lambda loader: [loader], "[['Tensor', 'Tensor']]"),
        (lambda loader: {"a": [loader]}, "{'a': [['Tensor', 'Tensor']]}"),
        (lambda loader: CombinedLoader([loader], "max_size"), "[['Tensor', 'Tensor']]"),
    ],
)
def test_batches_keep_their_form(users_form: Any, expected: str) -> None:
    counts, probe = Counts(), users.Probe()
    prune = lfp.DataPruning(0.5, 1, **STATIC)
    trainer = users.trainer(callbacks=[prune, probe, counts], max_epochs=3)
    given = users_form(DataLoader(users.Blobs(), 10, shuffle=True))
    trainer.fit(users.Model(), given, DataLoader(users.Blobs(60), 10))
    assert counts.forms == {expected}
    assert sorted(probe.samples[2]) == prune.selection.indices.tolist()


def test_second_fit_of_the_same_trainer_and_the_users_loader_is_as_before() -> None:
    loader = DataLoader(users.Blobs(), 10, shuffle=True)
    before = dict(vars(loader))
    given = {"a": loader}
    prune, probe = lfp.DataPruning(0.5, 1, **STATIC), users.Probe()
    trainer = users.trainer(callbacks=[prune, probe], max_epochs=3)
    val = DataLoader(users.Blobs(60), 10)
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        trainer.fit_loop.epoch_progress.reset()
        probe.samples.clear()
        trainer.fit(users.Model(), given, val)
        found.append((probe.samples.copy(), prune.selection.indices.tolist()))
        assert found[-1][0].keys() == {0, 1, 2}
        assert sorted(probe.samples[2]) == found[-1][1]
    assert found[0] == found[1]
    assert given == {"a": loader}
    assert dict(vars(loader)) == before
    # The Trainer has its own source again: without the callback it trains on everything.
    trainer.callbacks.remove(prune)
    trainer.fit_loop.epoch_progress.reset()
    probe.samples.clear()
    trainer.fit(users.Model(), given, val)
    assert sorted(probe.samples[2]) == list(range(N))


class NoValidation(users.Model):
    validation_step = pl.LightningModule.validation_step


class OnlyTraining(users.Data):
    val_dataloader = pl.LightningDataModule.val_dataloader


def seeded(model: Any) -> Any:
    torch.manual_seed(5)
    return model()


@pytest.mark.parametrize("users_form", [lambda loader: loader, lambda loader: {"a": loader}])
@pytest.mark.parametrize("model", [users.Model, NoValidation])
@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")
@pytest.mark.parametrize("score", [lfp.scores.el2n, lfp.geometry.prototype_distance])
def test_scoring_pass_runs_on_what_fit_was_given(model: Any, users_form: Any, score: Any) -> None:
    found = []
    for data in (True, False):
        prune = lfp.DataPruning(
            0.5, 1, score=score, keep="hard", score_on="pass", quota=lfp.quotas.balanced
        )
        trainer = users.trainer(callbacks=[prune], max_epochs=2)
        module = seeded(model)
        if data:
            trainer.fit(module, datamodule=OnlyTraining())
        else:
            trainer.fit(module, users_form(DataLoader(users.Blobs(), 10, shuffle=True)))
        found.append(prune.record)
    assert torch.equal(found[0].score, found[1].score)
    assert torch.equal(found[0].selection.indices, found[1].selection.indices)


@pytest.mark.parametrize("users_form", [lambda loader: loader, lambda loader: {"a": loader}])
def test_dry_run(users_form: Any, capsys: pytest.CaptureFixture[str]) -> None:
    prune, probe = lfp.DataPruning(0.4, 2, dry_run=True), users.Probe()
    trainer = users.trainer(callbacks=[prune, probe])
    given = users_form(DataLoader(users.Blobs(), 10, shuffle=True))
    trainer.fit(users.Model(), given, DataLoader(users.Blobs(60), 10))
    assert f"would keep {KEPT} of {N} samples" in capsys.readouterr().out
    assert not probe.samples


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (lambda loader: [loader, loader], "list of 2"),
        (lambda loader: {"a": loader, "b": loader}, "dict of 2"),
        (lambda loader: CombinedLoader({"a": loader, "b": loader}), "CombinedLoader of 2"),
        (lambda loader: [torch.zeros(2, 2)], "list of 1"),
        (lambda loader: users.Blobs(), "Blobs"),
    ],
)
def test_several_loaders_are_refused_in_one_sentence(given: Any, found: str) -> None:
    trainer = users.trainer(callbacks=[lfp.DataPruning(0.4, 2)])
    loader = DataLoader(users.Blobs(), 10)
    with pytest.raises(TypeError, match=rf"trainer.fit\(\) may be given one.*got {found}: combine"):
        trainer.fit(users.Model(), given(loader), DataLoader(users.Blobs(60), 10))
