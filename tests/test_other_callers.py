"""Hooks that read the training data during a fit change nothing, and get the user's own batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import users
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

import lightning_fairprune as lfp

N = 103
pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")


class Reader(pl.Callback):
    """Reads the training data in one hook, as a kNN bank or a grid of pictures does."""

    def __init__(self, hook: str, how: str, most: int | None = None) -> None:
        self.how, self.most = how, most
        self.seen: list[list[int]] = []
        self.lengths: list[int] = []
        setattr(self, hook, self.read)

    def read(self, trainer: Any, *_: Any, **__: Any) -> None:
        if trainer.sanity_checking:
            return
        if self.how == "trainer":
            loader = trainer.train_dataloader
        else:
            owner = trainer.datamodule if self.how == "datamodule" else trainer.lightning_module
            loader = owner.train_dataloader()
        self.lengths.append(len(loader))
        ids: list[int] = []
        for i, batch in enumerate(loader):
            if i == self.most:
                break
            assert type(batch) is list
            x, y = batch
            index = (x[:, 0] * 1000).round().long()
            assert torch.equal(x, users.Blobs().x[index])
            assert torch.equal(y, users.Blobs().y[index])
            ids += index.tolist()
        self.seen.append(ids)


class WithLoaders(users.Model):
    def __init__(self, data: users.Data) -> None:
        super().__init__()
        self.data = [data]
        data.setup("fit")

    def train_dataloader(self) -> Any:
        return self.data[0].train_dataloader()

    def val_dataloader(self) -> Any:
        return self.data[0].val_dataloader()


HOOKS = (
    "on_train_start",
    "on_train_epoch_start",
    "on_train_batch_start",
    "on_train_batch_end",
    "on_train_epoch_end",
    "on_validation_start",
    "on_validation_epoch_end",
)
PRUNE: dict[str, Any] = {"score": lfp.scores.el2n, "keep": "hard"}


def fit(
    form: str,
    reader: pl.Callback | None,
    *,
    workers: int = 0,
    resume: str | None = None,
    saved: ModelCheckpoint | None = None,
    first: bool = False,
    **options: Any,
) -> dict[str, Any]:
    torch.manual_seed(7)
    prune, probe = lfp.DataPruning(0.4, 2, **(PRUNE | options)), users.Probe()
    callbacks: list[Any] = [prune, probe] + ([saved] if saved else [])
    if reader is not None:
        callbacks = [reader, *callbacks] if first else [*callbacks, reader]
    data = users.Data(N, workers=workers)
    model: Any = WithLoaders(data) if form == "module" else users.Model()
    trainer = users.trainer(
        callbacks=callbacks, max_epochs=4, enable_checkpointing=saved is not None
    )
    arguments: dict[str, Any] = {"model": model}
    if form == "given":
        data.setup("fit")
        arguments |= {
            "train_dataloaders": data.train_dataloader(),
            "val_dataloaders": data.val_dataloader(),
        }
    elif form != "module":
        arguments["datamodule"] = lfp.FairPruneDataModule(data) if form == "wrapper" else data
    trainer.fit(**arguments, ckpt_path=resume)
    return {
        "samples": probe.samples,
        "batches": probe.planned,
        "kept": prune.selection.indices.tolist(),
        "history": [(e.epoch, e.quota.tolist()) for e in prune.history],
        "weights": [p.detach().clone() for p in model.parameters()],
        "reload": trainer.reload_dataloaders_every_n_epochs,
    }


def same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for name in ("samples", "batches", "kept", "history", "reload"):
        assert found[name] == expected[name], name
    for mine, theirs in zip(found["weights"], expected["weights"], strict=True):
        assert torch.equal(mine, theirs)


WAYS = [
    ("datamodule", "datamodule"),
    ("wrapper", "datamodule"),
    ("module", "module"),
    *((form, "trainer") for form in ("datamodule", "wrapper", "module", "given")),
]


@pytest.mark.parametrize(("form", "how"), WAYS)
@pytest.mark.parametrize("hook", HOOKS)
def test_reading_changes_nothing(hook: str, form: str, how: str) -> None:
    reader = Reader(hook, how)
    same(fit(form, reader), fit(form, None))
    kept_only = how == "trainer" or form == "wrapper"
    whole = [ids for ids in reader.seen if len(ids) == N]
    pruned = [ids for ids in reader.seen if len(ids) == 41]
    assert all(len(set(ids)) == len(ids) for ids in reader.seen)
    assert len(whole) + len(pruned) == len(reader.seen) > 0
    if not kept_only:
        assert len(whole) == len(reader.seen)
    elif hook not in ("on_train_start",):
        assert pruned


@pytest.mark.parametrize("persistent", [True, False])
@pytest.mark.parametrize("hook", ["on_train_batch_start", "on_train_epoch_end"])
def test_first_batches_of_a_loader_with_workers(
    hook: str, persistent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        users.Data,
        "train_dataloader",
        lambda self: DataLoader(
            self.train, 10, shuffle=True, num_workers=2, persistent_workers=persistent
        ),
    )
    reader = Reader(hook, "trainer", most=1)
    same(fit("datamodule", reader), fit("datamodule", None))
    assert {len(ids) for ids in reader.seen} == {10}


@pytest.mark.parametrize("hook", ["setup", "on_fit_start", "on_train_start"])
@pytest.mark.parametrize("form", ["datamodule", "wrapper"])
@pytest.mark.parametrize("first", [True, False])
def test_reading_before_training(hook: str, form: str, first: bool) -> None:
    reader = Reader(hook, "datamodule")
    same(fit(form, reader, first=first), fit(form, None))
    assert [len(ids) for ids in reader.seen] == [N]


@pytest.mark.parametrize(("form", "how"), WAYS)
def test_resumed_position_is_the_same(form: str, how: str, tmp_path: Path) -> None:
    for reader in (None, Reader("on_train_batch_end", how)):
        saved = ModelCheckpoint(
            tmp_path / str(reader is None),
            filename="{step}",
            save_top_k=-1,
            every_n_train_steps=1,
            save_on_train_epoch_end=False,
        )
        full = fit(form, reader, saved=saved)
    for step in (3, 15, 24):
        for quiet in (True, False):
            path = str(tmp_path / str(quiet) / f"step={step}.ckpt")
            for hook in (None, "on_train_start", "on_train_batch_start"):
                reader = None if hook is None else Reader(hook, how)
                again = fit(form, reader, resume=path)
                for epoch, ids in again["samples"].items():
                    assert full["samples"][epoch][-len(ids) :] == ids
                again |= {name: full[name] for name in ("samples", "batches")}
                same(again, full)
                # Others see whole epochs, also in the one that is resumed.
                assert reader is None or {len(ids) for ids in reader.seen} <= {N, 41}


def test_length_for_a_schedule() -> None:
    class Scheduled(users.Model):
        def configure_optimizers(self) -> Any:
            self.steps = len(self.trainer.datamodule.train_dataloader()) * self.trainer.max_epochs
            return super().configure_optimizers()

    for data in (users.Data(), lfp.FairPruneDataModule(users.Data())):
        model, prune, probe = Scheduled(), lfp.DataPruning(0.4, 2), users.Probe()
        users.trainer(callbacks=[prune, probe]).fit(model, datamodule=data)
        assert model.steps == 44
        assert probe.batches == {0: 11, 1: 11, 2: 5, 3: 5}


def test_attributes_of_the_shown_loader_reach_the_users_objects() -> None:
    class Sets(pl.Callback):
        def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
            loader = trainer.train_dataloader
            loader.dataset.epoch = trainer.current_epoch
            assert type(loader.dataset) is users.Blobs
            assert loader.dataset is trainer.datamodule.train
            assert trainer.train_dataloader is loader
            found.append(loader.sampler.epoch)

    found: list[int] = []
    data = users.Data()
    users.trainer(callbacks=[lfp.DataPruning(0.4, 2), Sets()]).fit(users.Model(), datamodule=data)
    assert found == [0, 1, 2, 3]
    assert data.train.epoch == 3


def test_wrapper_with_a_selection_resumes_though_others_read(tmp_path: Path) -> None:
    kept = lfp.Selection(
        indices=torch.arange(0, N, 2),
        num_samples=N,
        quota=torch.tensor([52]),
        sizes=torch.tensor([N]),
        keep="random",
        seed=0,
    )

    def run(
        reader: Any = None, resume: str | None = None, saved: Any = None
    ) -> dict[int, list[int]]:
        torch.manual_seed(0)
        probe = users.Probe()
        callbacks = [c for c in (probe, reader, saved) if c is not None]
        trainer = users.trainer(
            callbacks=callbacks, max_epochs=3, enable_checkpointing=saved is not None
        )
        data = lfp.FairPruneDataModule(users.Data(), selection=kept)
        trainer.fit(users.Model(), datamodule=data, ckpt_path=resume)
        return probe.samples

    saved = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=1)
    full = run(saved=saved)
    assert all(sorted(ids) == kept.indices.tolist() for ids in full.values())
    for hook in ("setup", "on_fit_start", "on_train_batch_start", "on_train_epoch_end"):
        reader = Reader(hook, "datamodule")
        assert run(reader) == full
        resumed = run(Reader(hook, "datamodule"), str(tmp_path / "step=8.ckpt"))
        assert resumed == {1: full[1][20:], 2: full[2]}
        assert {len(ids) for ids in reader.seen} == {52}
