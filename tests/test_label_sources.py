"""Labels that are guessed from what a data set has in memory are verified before they decide anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import users
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset

import lightning_fairprune as lfp
from lightning_fairprune._loading.labels import guesses, is_label, labels_of

Y = [2, 0, 1, 1, 0, 2]


class Stored(Dataset[Any]):
    def __init__(self, labels: Any) -> None:
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> Any:
        return torch.zeros(2), Y[i]


INDICES: dict[str, Any] = {
    "list": [3, 0, 5],
    "tuple": (3, 0, 5),
    "uint8": torch.tensor([3, 0, 5], dtype=torch.uint8),
    "int32": torch.tensor([3, 0, 5], dtype=torch.int32),
    "numpy_uint8": np.array([3, 0, 5], dtype=np.uint8),
    "numpy_uint16": np.array([3, 0, 5], dtype=np.uint16),
    "numpy_uint64": np.array([3, 0, 5], dtype=np.uint64),
    "numpy_numbers": [np.uint8(3), np.int64(0), np.int16(5)],
    "tensors": [torch.tensor(3), torch.tensor(0), torch.tensor(5)],
    "range": range(3, 0, -1),
}


@pytest.mark.parametrize("name", INDICES)
def test_indices_of_a_subset_of_any_type(name: str) -> None:
    expected = [Y[int(i)] for i in INDICES[name]]
    assert labels_of(Subset(Stored(Y), INDICES[name])).tolist() == expected


@pytest.mark.parametrize("indices", [[], np.array([]), torch.tensor([])])
def test_empty_subset(indices: Any) -> None:
    empty = Subset(Stored(Y), indices)
    found = labels_of(empty)
    assert found.dtype == torch.int64
    assert found.tolist() == []
    assert labels_of(ConcatDataset([empty, Stored(Y)])).tolist() == Y
    assert labels_of(TensorDataset(torch.zeros(0, 2), torch.zeros(0).long())).tolist() == []


class OnDisk:
    """Labels of h5py or zarr: read as a whole by slicing, one by one in minutes."""

    def __init__(self, labels: Any) -> None:
        self.values, self.reads = np.array(labels), 0
        self.shape, self.dtype = self.values.shape, self.values.dtype

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, what: Any) -> Any:
        assert isinstance(what, slice), "read one by one"
        self.reads += 1
        return self.values[what]


def test_labels_on_a_disk_are_read_at_once_and_once() -> None:
    stored = OnDisk(np.array(Y, dtype=np.uint16))
    data = Stored(stored)
    for _ in range(3):
        assert labels_of(data).tolist() == Y
    assert labels_of(Subset(data, [1, 5])).tolist() == [0, 2]
    assert stored.reads == 1


def test_h5py(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["y"] = np.array(Y, dtype=np.uint8)
        data = Stored(file["y"])
        assert labels_of(data).tolist() == Y
    with h5py.File(tmp_path / "x.h5") as file:
        closed = Stored(file["y"])
        closed.__class__ = type("Long", (Stored,), {"__len__": lambda self: 6})
    assert labels_of(closed) is None


class Table:
    """A data set of Hugging Face, as far as its labels go."""

    def __init__(self, labels: Any, name: str = "label", form: str | None = None) -> None:
        self.values, self.name, self.form = labels, name, form
        self.column_names = ["x", name]
        self.columns_read: list[str] = []

    def with_format(self, form: str) -> Table:
        other = Table(self.values, self.name, form)
        other.columns_read = self.columns_read
        return other

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, what: Any) -> Any:
        assert what == self.name, "a sample was read"
        self.columns_read.append(what)
        return np.array(self.values) if self.form == "numpy" else self.values


@pytest.mark.parametrize("name", ["label", "labels", "y"])
def test_column_of_a_table_is_read_at_once_and_once(name: str) -> None:
    table: Any = Table(Y, name)
    for _ in range(3):
        assert labels_of(table).tolist() == Y
    assert labels_of(Subset(table, [0, 3])).tolist() == [2, 1]
    assert table.columns_read == [name]
    assert labels_of(Table(list("abcabc"))) is None
    assert labels_of(Table(Y, "caption")) is None


def test_hugging_face() -> None:
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_dict({"x": [[1.0, 2.0]] * 6, "label": Y})
    for form in (None, "torch", "numpy"):
        assert labels_of(table.with_format(form)).tolist() == Y
    turned = table.select([5, 0])
    assert labels_of(turned).tolist() == [2, 2]
    assert is_label(labels_of(turned), turned)


def test_samples_say_whether_a_guess_is_right() -> None:
    x, y, ids = torch.zeros(6, 2), torch.tensor(Y), torch.arange(6)
    right, wrong = TensorDataset(x, y), TensorDataset(x, y, ids)
    assert is_label(labels_of(right), right) is True
    assert is_label(labels_of(wrong), wrong) is False
    assert [is_label(found, wrong) for found in guesses(wrong)] == [False, True]
    assert is_label(torch.tensor(Y), Stored(Y)) is True
    assert is_label(torch.tensor(Y), TensorDataset(x)) is None
    assert is_label(torch.tensor(Y), Table(Y)) is None  # a sample cannot be read

    class Random(Stored):
        def __getitem__(self, i: int) -> Any:
            return torch.rand(2) + float(np.random.rand()), np.int64(Y[i])  # noqa: NPY002

    before = torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
    assert is_label(torch.tensor(Y), Random(Y)) is True
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()  # noqa: NPY002


# -------------------------------------------------------------------------------------- in a fit


class Third(users.Data):
    """A third tensor holds the number of each patient: 60 of them in validation."""

    ids = 0

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.blobs = self.train
        self.train: Any = self.with_ids(self.train, 60)
        self.val: Any = self.with_ids(self.val, 60)

    def with_ids(self, blobs: users.Blobs, count: int) -> TensorDataset:
        return TensorDataset(blobs.x, blobs.y, (torch.arange(len(blobs)) + self.ids) % count)


class Model(users.Model):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y, _ = batch
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx))


def test_dry_run_counts_classes_and_not_ids(capsys: pytest.CaptureFixture[str]) -> None:
    prune = lfp.DataPruning(0.4, 2, dry_run=[0.5] * 4)
    data = Third(loader={})
    data.loader = {"shuffle": True, "drop_last": True}
    users.trainer(callbacks=[prune]).fit(Model(), datamodule=data)
    said = capsys.readouterr().out
    assert "would keep 41 of 103 samples" in said
    sizes = [line.split("│")[2].strip() for line in said.splitlines() if line.count("│") == 6]
    assert [int(size) for size in sizes] == data.blobs.y.bincount().tolist()


def test_dry_run_without_labels_reads_every_sample_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for options in (
        {"drop_last": True},
        {"sampler": torch.utils.data.WeightedRandomSampler([1.0] * 103, 50)},
    ):
        prune = lfp.DataPruning(0.4, 2, dry_run=True)
        loader: Any = DataLoader(users.Blobs(), 10, **options)
        trainer = users.trainer(callbacks=[prune])
        trainer.fit(users.Model(), loader, DataLoader(users.Blobs(60), 10))
        said = capsys.readouterr().out
        assert "would keep 41 of 103 samples" in said
        sizes = [line.split("│")[2].strip() for line in said.splitlines() if line.count("│") == 6]
        assert [int(size) for size in sizes] == users.Blobs().y.bincount().tolist()


def test_reference_of_the_same_data_is_accepted(tmp_path: Path) -> None:
    first = lfp.RecallMonitor(dirpath=tmp_path)
    users.trainer(callbacks=[first], max_epochs=1).fit(Model(), datamodule=Third())
    monitor = lfp.RecallMonitor(reference=str(tmp_path))
    users.trainer(callbacks=[monitor], max_epochs=1).fit(Model(), datamodule=Third())
    assert len(monitor.history.evaluations) == 1


def test_reference_of_other_data_is_refused_before_training(tmp_path: Path) -> None:
    class Other(users.Data):
        def setup(self, stage: str) -> None:
            super().setup(stage)
            blobs = users.Blobs(60, seed=1)
            self.val: Any = TensorDataset(blobs.x, 3 - blobs.y)

    first = lfp.RecallMonitor(dirpath=tmp_path)
    users.trainer(callbacks=[first], max_epochs=1).fit(users.Model(), datamodule=users.Data())
    monitor, probe = lfp.RecallMonitor(reference=str(tmp_path)), users.Probe()
    with pytest.raises(ValueError, match="must be counted on the same data"):
        users.trainer(callbacks=[monitor, probe], max_epochs=1).fit(
            users.Model(), datamodule=Other()
        )
    assert not probe.samples


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_ids_that_change_between_runs_do_not_stop_a_resumed_fit(tmp_path: Path) -> None:
    class Later(Third):
        ids = 7

    def run(data: pl.LightningDataModule, resume: str | None = None) -> Any:
        prune = lfp.DataPruning(0.4, 1, resample_every=None, update_every=None)
        torch.manual_seed(0)
        saved = pl.callbacks.ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        trainer = users.trainer(callbacks=[prune, saved], max_epochs=3, enable_checkpointing=True)
        trainer.fit(Model(), datamodule=data, ckpt_path=resume)
        return prune.selection.indices.tolist()

    kept = run(Third())
    assert run(Later(), str(tmp_path / "epoch=0.ckpt")) == kept

    class Changed(Third):
        def with_ids(self, blobs: users.Blobs, count: int) -> TensorDataset:
            return TensorDataset(blobs.x, blobs.y.flip(0))

    class Known(Third):
        def with_ids(self, blobs: users.Blobs, count: int) -> TensorDataset:
            return TensorDataset(blobs.x, blobs.y)

    class Two(users.Model):
        pass

    for path in tmp_path.glob("*.ckpt"):
        path.unlink()

    def again(data: Any, resume: str | None = None) -> None:
        prune = lfp.DataPruning(0.4, 1)
        saved = pl.callbacks.ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        trainer = users.trainer(callbacks=[prune, saved], max_epochs=3, enable_checkpointing=True)
        trainer.fit(Two(), datamodule=data, ckpt_path=resume)

    again(Known())
    with pytest.raises(ValueError, match="labels of the 103 training samples are different"):
        again(Changed(), str(tmp_path / "epoch=0.ckpt"))


def test_pass_over_the_same_samples_with_other_ids_is_accepted() -> None:
    class Plain(Third):
        def plain(self) -> Any:
            blobs = self.blobs
            return DataLoader(TensorDataset(blobs.x, blobs.y, torch.arange(103) * 3), 10)

    way = lfp.ScorePass(dataloader="plain")
    prune = lfp.DataPruning(0.4, 1, score=lfp.scores.el2n, keep="hard", score_on=way)
    users.trainer(callbacks=[prune], max_epochs=2).fit(Model(), datamodule=Plain())
    assert len(prune.selection) == 41


@pytest.mark.filterwarnings("ignore:.*were never observed in the warm-up")
def test_unseen_samples_get_the_labels_that_agree_with_the_seen_ones() -> None:
    class Few(Third):
        loader: Any

        def train_dataloader(self) -> Any:
            return DataLoader(self.train, 10, drop_last=True)  # the last three are never seen

    prune = lfp.DataPruning(1.0, 1, quota=lfp.quotas.proportional)
    data = Few()
    users.trainer(callbacks=[prune], max_epochs=2).fit(Model(), datamodule=data)
    assert prune.record.target.tolist() == data.blobs.y.tolist()
