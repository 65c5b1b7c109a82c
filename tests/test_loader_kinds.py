"""Subclasses of DataLoader and worker_init_fn: the same batches as without pruning, or one sentence."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
import users
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, Dataset, SubsetRandomSampler, get_worker_info
from torch.utils.data.dataloader import default_collate

import lightning_fairprune as lfp
from lightning_fairprune._loading.index import IndexedBatch, IndexView
from lightning_fairprune._loading.rebuild import rebuild

N, STATIC = 103, {"resample_every": None, "update_every": None}


class Batches(pl.Callback):
    """Notes the batches that the steps get, by epoch."""

    def __init__(self) -> None:
        self.of: dict[int, list[Any]] = {}

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, i: int) -> None:
        self.of.setdefault(trainer.current_epoch, []).append(batch)


class DictModel(users.Model):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return F.cross_entropy(self(batch["x"]), batch["y"])


def fit(loader: DataLoader[Any], model: Any = DictModel, **options: Any) -> tuple[Any, Any, Any]:
    prune, batches, probe = lfp.DataPruning(0.4, 1, **(STATIC | options)), Batches(), users.Probe()
    trainer = users.trainer(callbacks=[batches, prune, probe], max_epochs=3)
    trainer.fit(model(), loader, DataLoader(users.Blobs(60), 20))
    assert sorted(probe.samples[0]) == list(range(N))
    for epoch in (1, 2):
        assert sorted(probe.samples[epoch]) == prune.selection.indices.tolist()
    return prune, batches, probe


class Collater:
    def __init__(self, follow: list[str]) -> None:
        self.follow = follow

    def __call__(self, samples: list[Any]) -> dict[str, Any]:
        x, y = default_collate(samples)
        return {"x": x, "y": y} | {f"{name}_batch": torch.arange(len(x)) for name in self.follow}


class Brings(DataLoader[Any]):
    """Discards the collate function that it is given, as that of torch_geometric."""

    def __init__(
        self, dataset: Any, batch_size: int = 1, follow: Any = None, **options: Any
    ) -> None:
        options.pop("collate_fn", None)
        super().__init__(dataset, batch_size, collate_fn=Collater(follow or []), **options)


class Picky(DataLoader[Any]):
    """Has arguments of its own only."""

    def __init__(self, where: str, how_many: int, follow: list[str]) -> None:
        super().__init__(users.Blobs(), how_many, shuffle=True, collate_fn=Collater(follow))
        self.where = where


class Moves(DataLoader[Any]):
    """Works on its own batches."""

    def __iter__(self) -> Iterator[Any]:
        for x, y in super().__iter__():
            yield {"x": x, "y": y, "z_batch": torch.arange(len(x))}


class Cuts(DataLoader[Any]):
    """Works on its own batches in its iterator, as torch_geometric's loaders of neighbours do."""

    def _get_iterator(self) -> Any:
        return Cutting(super()._get_iterator())


class Cutting:
    def __init__(self, batches: Any) -> None:
        self.batches = batches

    def __iter__(self) -> Any:
        return self

    def _reset(self, loader: Any, first_iter: bool = False) -> None:
        self.batches._reset(loader, first_iter)

    def __next__(self) -> Any:
        x, y = next(self.batches)
        return {"x": x, "y": y, "z_batch": torch.arange(len(x))}


LOADERS: dict[str, Any] = {
    "brings": lambda: Brings(users.Blobs(), 10, ["z"], shuffle=True),
    "brings_with_workers": lambda: Brings(users.Blobs(), 10, ["z"], shuffle=True, num_workers=2),
    "picky": lambda: Picky("here", 10, ["z"]),
    "moves": lambda: Moves(users.Blobs(), 10, shuffle=True),
    "moves_with_workers": lambda: Moves(
        users.Blobs(), 10, shuffle=True, num_workers=2, persistent_workers=True
    ),
    "cuts": lambda: Cuts(users.Blobs(), 10, shuffle=True),
    "cuts_with_workers": lambda: Cuts(
        users.Blobs(), 10, shuffle=True, num_workers=2, persistent_workers=True
    ),
}


@pytest.mark.parametrize("name", LOADERS)
def test_batches_are_those_of_the_users_class(name: str) -> None:
    loader = LOADERS[name]()
    prune, batches, _ = fit(loader, score=lfp.scores.el2n, keep="hard")
    data = users.Blobs()
    for epoch, found in batches.of.items():
        for batch in found:
            assert type(batch) is dict
            ids = (batch["x"][:, 0] * 1000).round().long()
            assert set(batch) == {"x", "y", "z_batch"}
            assert torch.equal(batch["x"], data.x[ids])
            assert torch.equal(batch["y"], data.y[ids])
            assert batch["z_batch"].tolist() == list(range(len(ids))), epoch
    assert torch.equal(prune.dynamics.target, data.y)


@pytest.mark.parametrize("name", LOADERS)
def test_scoring_pass_has_the_same_batches(name: str) -> None:
    torch.manual_seed(0)
    model = users.Model()

    def forward(module: Any, batch: Any) -> Any:
        assert set(batch) == {"x", "y", "z_batch"}
        return module(batch["x"]), batch["y"]

    options: dict[str, Any] = {"progress": False}
    found = lfp.score_pass(model, LOADERS[name](), lfp.scores.el2n, logits_fn=forward, **options)
    plain = lfp.score_pass(model, DataLoader(users.Blobs(), 10), lfp.scores.el2n, **options)
    assert torch.equal(found, plain)


class Skips(DataLoader[Any]):
    def __iter__(self) -> Iterator[Any]:
        batches = iter(super().__iter__())
        for first, _ in zip(batches, batches, strict=False):
            yield first


class Repeats(DataLoader[Any]):
    def __iter__(self) -> Iterator[Any]:
        for batch in super().__iter__():
            yield batch
            yield batch


class KeepsIterating(DataLoader[Any]):
    """Never lets its workers go, as timm's loader over several epochs does."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.iterator = super().__iter__()

    def __iter__(self) -> Iterator[Any]:
        for _ in range(len(self)):
            yield next(self.iterator)


class Fixed(DataLoader[Any]):
    @property
    def collate_fn(self) -> Any:
        return default_collate

    @collate_fn.setter
    def collate_fn(self, value: Any) -> None: ...


REFUSED = {
    "skips": (Skips, r"Skips.__iter__ must yield one batch for each that it fetches.*fetched 2"),
    "repeats": (Repeats, r"Repeats.__iter__ must yield one batch.*fetched 0"),
    "keeps": (KeepsIterating, "KeepsIterating cannot be.*over all samples in `iterator`"),
    "fixed": (Fixed, "Fixed cannot be rebuilt over the kept samples: its `collate_fn`"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_loader_that_would_be_wrong_is_refused(name: str) -> None:
    kind, match = REFUSED[name]
    with pytest.raises(TypeError, match=match):
        fit(kind(users.Blobs(), 10, shuffle=True), users.Model)


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # torchdata 0.11 with torch 2.15
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize("workers", [0, 2])
def test_torchdatas_loader_is_pruned_and_resumes(workers: int, tmp_path: Path) -> None:
    torchdata = pytest.importorskip("torchdata.stateful_dataloader")

    def run(resume: str | None = None) -> tuple[Any, dict[int, list[int]]]:
        prune, probe = lfp.DataPruning(0.4, 1, **STATIC), users.Probe()
        saved = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        callbacks = [prune, probe] + ([] if resume else [saved])
        trainer = users.trainer(callbacks=callbacks, max_epochs=3, enable_checkpointing=not resume)
        loader = torchdata.StatefulDataLoader(users.Blobs(), 10, shuffle=True, num_workers=workers)
        torch.manual_seed(0)
        trainer.fit(users.Model(), loader, DataLoader(users.Blobs(60), 20), ckpt_path=resume)
        return prune.selection.indices.tolist(), probe.samples

    kept, full = run()
    assert sorted(full[0]) == list(range(N))
    assert sorted(full[1]) == sorted(full[2]) == kept
    for step in (4, 13):
        again, ids = run(str(tmp_path / f"step={step}.ckpt"))
        assert again == kept
        for epoch in ids:
            assert full[epoch][-len(ids[epoch]) :] == ids[epoch]


# ------------------------------------------------------------------- what workers do to the data set


class Store(Dataset[Any]):
    """Opens its file in each worker."""

    handle: str | None = None
    epoch = -1

    def __init__(self, blobs: users.Blobs) -> None:
        self.blobs = blobs
        self.dataset = "an attribute of this name"

    def __len__(self) -> int:
        return len(self.blobs)

    def __getitem__(self, i: int) -> Any:
        assert self.handle is not None, "not open"
        x, y = self.blobs[i]
        return x, y, self.handle


def opens(worker: int) -> None:
    info = get_worker_info()
    assert isinstance(info.dataset, Store)
    assert info.dataset.dataset == "an attribute of this name"
    info.dataset.handle = f"file of worker {worker}"
    info.dataset.more = 1
    del info.dataset.more


class Opened(users.Model):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y, handle = batch
        assert {h.split()[0] for h in handle} == {"file"}
        return F.cross_entropy(self(x), y)


@pytest.mark.parametrize(("part", "start"), [(False, "fork"), (True, "fork"), (False, "spawn")])
def test_worker_init_fn_writes_through(part: bool, start: str) -> None:
    sampler = SubsetRandomSampler(torch.arange(N)) if part else None
    loader = DataLoader(
        Store(users.Blobs()),
        10,
        shuffle=None if part else True,
        sampler=sampler,
        num_workers=2,
        worker_init_fn=opens,
        persistent_workers=True,
        multiprocessing_context=multiprocessing.get_context(start),
    )
    prune, _, _ = fit(loader, Opened)
    assert prune.selection is not None


def test_worker_init_fn_writes_through_in_a_scoring_pass() -> None:
    loader = DataLoader(Store(users.Blobs()), 10, num_workers=2, worker_init_fn=opens)
    found = lfp.score_pass(
        users.Model(),
        loader,
        lfp.scores.el2n,
        logits_fn=lambda module, batch: (module(batch[0]), batch[1]),
        progress=False,
    )
    assert len(found) == N


def test_view_passes_for_the_data_set() -> None:
    store = Store(users.Blobs())
    view: Any = IndexView(store)
    assert isinstance(view, Store)
    assert isinstance(view, IndexView)
    view.epoch = 3
    assert store.epoch == 3
    del view.epoch
    assert "epoch" not in vars(store)
    again = pickle.loads(pickle.dumps(view))
    assert again.dataset == "an attribute of this name"
    assert type(again) is IndexView


def test_shown_loader_has_the_users_data_set() -> None:
    class Sets(pl.Callback):
        def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
            trainer.train_dataloader.dataset.epoch = trainer.current_epoch

    store = Store(users.Blobs())
    store.handle = "file"
    loader = DataLoader(store, 10, shuffle=True)
    trainer = users.trainer(callbacks=[lfp.DataPruning(0.4, 1), Sets()], max_epochs=3)
    trainer.fit(Opened(), loader, DataLoader(users.Blobs(60), 20))
    assert store.epoch == 2


def test_part_of_a_sampler_is_drawn_through_the_users_data_set() -> None:
    store = Store(users.Blobs())
    store.handle = "file"
    part = [20, 3, 7, 11, 5]
    loader = DataLoader(store, 2, sampler=SubsetRandomSampler(part))
    plain: Any = rebuild(loader, kept=torch.tensor([0, 3]))
    assert isinstance(plain.dataset, Store)
    ids = [i for batch in plain for i in (batch[0][:, 0] * 1000).round().long().tolist()]
    assert sorted(ids) == [11, 20]
    for batch in rebuild(loader, carry_index=True):
        assert type(batch) is IndexedBatch
        found = (batch.batch[0][:, 0] * 1000).round().long().tolist()
        assert [part[i] for i in batch.indices] == found
