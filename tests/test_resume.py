"""A resumed fit keeps the same samples and ends with the same weights, to the last bit."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import scenario
from test_swap import launch

import lightning_fairprune as lfp

# Two warm-up epochs of 11 batches, two pruned ones of 5; quotas with a state of their own.
PRUNE: dict[str, dict[str, Any]] = {
    "random": {"quota": "drop"},
    "scored": {"score": "el2n", "keep": "hard", "quota": "minimax", "recall_window": 2},
    "restart": {"quota": "minimax", "after": "restart"},
    "difficulty": {"score": "el2n", "quota": "difficulty"},
    "pool": {"score": "el2n", "keep": "hard", "quota": "difficulty", "cutoff": 0.1, "pool": 0.7},
    "forgetting": {"score": "forgetting", "keep": "stratified", "resample_every": 2},
}
WHEN: dict[str, dict[str, Any]] = {
    "epoch_end": {"save_on_train_epoch_end": True},
    "validation_end": {"save_on_train_epoch_end": False},
}
pytestmark = [
    # The resumed fits save nothing, so they have no ModelCheckpoint.
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used"),
]
RESUMABLE = ("kept", "quota", "history", "weights")


def saved(folder: Path, steps: set[int] | None = None) -> list[str]:
    paths = sorted(folder.glob("*.ckpt"), key=step)
    return [str(path) for path in paths if steps is None or step(path) in steps]


def step(path: Path) -> int:
    return int(path.stem.split("step=")[1].split("-")[0])


def check(full: dict[str, Any], resumed: dict[str, Any], what: str) -> None:
    for key in RESUMABLE:
        assert full[key] == resumed[key], (what, key)
    for epoch, samples in resumed["samples"].items():
        assert full["samples"][epoch][-len(samples) :] == samples, (what, "order", epoch)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("when", WHEN)
@pytest.mark.parametrize("prune", PRUNE)
def test_from_every_epoch(prune: str, when: str, workers: int, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"prune": PRUNE[prune], "workers": workers}
    full = scenario.run(**settings, checkpoint=WHEN[when], folder=str(tmp_path))
    checkpoints = saved(tmp_path)
    assert len(checkpoints) == 4
    for path in checkpoints:
        check(full, scenario.run(**settings, resume=path), path)


@pytest.mark.parametrize("workers", [0, 2])
def test_from_inside_an_epoch_with_a_loader_built_ahead_of_time(
    workers: int, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"prune": PRUNE["scored"], "planned": True, "workers": workers}
    checkpoint = {"every_n_train_steps": 1, "save_on_train_epoch_end": False}
    full = scenario.run(**settings, checkpoint=checkpoint, folder=str(tmp_path))
    for path in saved(tmp_path, {5, 14, 25}):
        check(full, scenario.run(**settings, resume=path), path)


@pytest.mark.parametrize("form", ["wrapper", "datamodule", "module"])
def test_from_inside_an_epoch(form: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"prune": PRUNE["scored"], "form": form, "workers": 2}
    checkpoint = {"every_n_train_steps": 1, "save_on_train_epoch_end": False}
    full = scenario.run(**settings, checkpoint=checkpoint, folder=str(tmp_path))
    for path in saved(tmp_path, {1, 10, 12, 16, 23, 26, 28}):
        check(full, scenario.run(**settings, resume=path), path)


def test_on_two_ranks(tmp_path: Path) -> None:
    ddp = {"devices": 2, "strategy": "ddp"}
    base: dict[str, Any] = {"batch_size": 5, "trainer": ddp}
    fits = {}
    for name, prune in PRUNE.items():
        for when, checkpoint in WHEN.items():
            folder = str(tmp_path / name / when)
            fits[name, when] = base | {
                "prune": prune,
                "checkpoint": checkpoint,
                "folder": folder,
            }
    full = launch(fits, tmp_path)
    again = {
        (*key, path): {k: v for k, v in fits[key].items() if k not in ("checkpoint", "folder")}
        | {"resume": path}
        for key in fits
        for path in saved(Path(fits[key]["folder"]))
    }
    assert len(again) == 4 * len(fits)
    for (name, when, path), records in launch(again, tmp_path).items():
        for rank in (0, 1):
            check(full[name, when][rank], records[rank], path)


@pytest.mark.parametrize("quota", ["drop", "proportional"])
def test_checkpoint_of_the_last_batch_is_told(quota: str, tmp_path: Path) -> None:
    """The Trainer skips the validation of such a checkpoint and the end of its epoch."""
    settings: dict[str, Any] = {"prune": {"quota": quota}}
    checkpoint = {"every_n_train_steps": 1, "save_on_train_epoch_end": False}
    full = scenario.run(**settings, checkpoint=checkpoint, folder=str(tmp_path))
    for path in saved(tmp_path, {11, 22, 27}):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            resumed = scenario.run(**settings, resume=path)
        said = [str(w.message) for w in told if "taken on the last batch" in str(w.message)]
        assert len(said) == (quota == "drop")
        if quota == "proportional":  # needs no recall, so nothing is missing
            check(full, resumed, path)


def test_other_data_is_refused(tmp_path: Path) -> None:
    scenario.run(checkpoint={}, folder=str(tmp_path))
    for path in saved(tmp_path):
        with pytest.raises(ValueError, match=r"104 samples.* 103 .*resume with the same data"):
            scenario.run(resume=path, n=104)


def test_changed_labels_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"prune": PRUNE["scored"]}
    scenario.run(**settings, checkpoint={}, folder=str(tmp_path))
    first = saved(tmp_path)[0]
    blobs = scenario.users.Blobs
    monkeypatch.setattr(blobs, "__getitem__", lambda self, i: (self.x[i], (int(self.y[i]) + 1) % 4))
    with pytest.raises(ValueError, match="target of 103 samples changed in epoch 1"):
        scenario.run(**settings, resume=first)


def test_other_settings_are_refused(tmp_path: Path) -> None:
    scenario.run(prune=PRUNE["scored"], checkpoint={}, folder=str(tmp_path))
    with pytest.raises(
        ValueError,
        match=r"has `score`='forgetting', `quota`='drop', `keep`='stratified' where .* 'el2n', 'Minimax",
    ):
        scenario.run(prune=PRUNE["forgetting"], resume=saved(tmp_path)[0])


def test_how_often_quotas_follow_may_change(tmp_path: Path) -> None:
    # The shrinkage that was the default once.
    scenario.run(prune=PRUNE["random"] | {"shrinkage": 10.0}, checkpoint={}, folder=str(tmp_path))
    scenario.run(prune=PRUNE["random"] | {"recall_window": 5}, resume=saved(tmp_path)[0])


def test_second_fit_starts_afresh() -> None:
    callback = lfp.DataPruning(0.4, 2, quota=lfp.quotas.Minimax())
    kept = []
    for _ in range(2):
        scenario.pl.seed_everything(1, verbose=False)
        trainer = scenario.users.trainer(callbacks=[callback])
        trainer.fit(scenario.users.Model(), datamodule=scenario.users.Data())
        kept.append(callback.selection.indices.tolist())
    assert kept[0] == kept[1]


def length(max_epochs: int) -> dict[str, Any]:
    return {"trainer": {"max_epochs": max_epochs}}


def test_the_same_warm_up_may_be_given_as_a_fraction_or_in_epochs(tmp_path: Path) -> None:
    drop = {"quota": "drop"}
    scenario.run(prune=drop | {"warmup_epochs": 0.5}, checkpoint={}, folder=str(tmp_path))
    full = scenario.run(prune=drop | {"warmup_epochs": 2}, **length(8))
    for path in saved(tmp_path):
        for warmup in (2, 0.25):  # 2 of 4 epochs, and now 2 of 8
            prune = drop | {"warmup_epochs": warmup}
            check(full, scenario.run(prune=prune, resume=path, **length(8)), f"{path} {warmup}")


def test_a_fraction_that_means_another_warm_up_is_refused(tmp_path: Path) -> None:
    scenario.run(prune={"warmup_epochs": 0.5}, checkpoint={}, folder=str(tmp_path))
    for path in saved(tmp_path):
        with pytest.raises(
            ValueError, match=r"=0.5 of max_epochs=8, which is 4 .* has 2: give warmup_epochs=2\."
        ):
            scenario.run(prune={"warmup_epochs": 0.5}, resume=path, **length(8))
        with pytest.raises(ValueError, match=r"`warmup_epochs`=3 where the checkpoint has 2"):
            scenario.run(prune={"warmup_epochs": 3}, resume=path)


def test_recalls_of_another_loader_are_refused() -> None:
    before = lfp.DataPruning(0.4, 2).settings.to_resume()
    with pytest.raises(ValueError, match="`recall_dataloader`=1 where the checkpoint has 0"):
        lfp.DataPruning(0.4, 2, recall_dataloader=1).settings.check_resumed(before)
