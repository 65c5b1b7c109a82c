"""Samplers: weights that change, weights against quotas, batch samplers, and samplers of the user's own."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import ranks
import torch
import users
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    WeightedRandomSampler,
)

import lightning_fairprune as lfp
from lightning_fairprune._loading.sampler import EpochSampler
from lightning_fairprune.callbacks._data import checks

N, BUDGET = 103, 41
STATIC = {"resample_every": None, "update_every": None}
Y = users.Blobs().y
pytestmark = pytest.mark.filterwarnings("ignore:.*were never observed in the warm-up")


def fit(loader: Any, *callbacks: Any, resume: str | None = None, **options: Any) -> Any:
    prune, probe = lfp.DataPruning(0.4, 1, **(STATIC | options)), users.Probe()
    torch.manual_seed(0)
    saves = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    trainer = users.trainer(
        callbacks=[prune, probe, *callbacks], max_epochs=4, enable_checkpointing=saves
    )
    trainer.fit(users.Model(), loader, DataLoader(users.Blobs(60), 20), ckpt_path=resume)
    return prune, probe.samples


# ----------------------------------------------------------------------------------------- weights


class SetsWeights(pl.Callback):
    """Gives all weight to one class in each epoch."""

    def __init__(self, sampler: Any, how: str) -> None:
        self.sampler, self.how = sampler, how

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        weights = (self.class_of(trainer.current_epoch + 1) == Y).double()
        if self.how == "in place":
            self.sampler.weights.copy_(weights)
        elif self.how == "shown":
            trainer.train_dataloader.sampler.weights = weights
        else:
            self.sampler.weights = weights.tolist() if self.how == "list" else weights

    @staticmethod
    def class_of(epoch: int) -> int:
        return epoch % 3


@pytest.mark.parametrize("how", ["new", "list", "in place", "shown"])
def test_weights_that_change_are_followed(how: str) -> None:
    sampler = WeightedRandomSampler(torch.ones(N, dtype=torch.float64), 4 * N)
    loader = DataLoader(users.Blobs(), 10, sampler=sampler)
    prune, samples = fit(loader, SetsWeights(sampler, how), quota=None)
    assert set(samples[0]) <= set(range(N))
    kept = set(prune.selection.indices.tolist())
    for epoch in (1, 2, 3):
        assert set(samples[epoch]) <= kept
        assert {int(Y[i]) for i in samples[epoch]} == {SetsWeights.class_of(epoch)}


def test_weights_of_another_length_are_refused() -> None:
    sampler = EpochSampler(5, weights=torch.ones(5), draws=5)
    sampler.weights = torch.ones(4)
    with pytest.raises(ValueError, match=r"must stay one for each of 5 samples, got \[4\]"):
        list(sampler)


SIZES, QUOTA = torch.tensor([200, 100, 30]), torch.tensor([200, 77, 23])


def test_weights_leave_quotas_alone() -> None:
    labels = torch.repeat_interleave(torch.arange(3), SIZES)
    kept = torch.cat([torch.nonzero(labels == k).flatten()[: QUOTA[k]] for k in range(3)])
    # Balanced, as usual, and the first half of every class three times as often.
    weights = 1 / SIZES[labels].double()
    weights[::2] *= 3
    users_sampler = WeightedRandomSampler(weights, 330)
    found = {}
    for classes in (None, labels):
        sampler = EpochSampler(
            330, weights=users_sampler, draws=330, kept=kept, classes=classes, seed=1
        )
        times: Counter[int] = Counter()
        for epoch in range(200):
            sampler.set_epoch(epoch)
            times.update(list(sampler))
        drawn = torch.tensor([times[i] for i in range(330)])
        found[classes is None] = torch.zeros(3).index_add(0, labels, drawn.float()) / 200
        if classes is not None:
            often, seldom = (drawn[kept[kept % 2 == odd]].float().mean() for odd in (0, 1))
            assert 2.8 < often / seldom < 3.2
    assert (
        found[True] - torch.tensor([118.3, 91.1, 90.7])
    ).abs().max() < 3  # the weights cancel them
    assert (found[False] - QUOTA).abs().max() < 3


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize("form", ["given", "wrapper"])
def test_quotas_hold_in_a_fit_and_it_says_so(
    form: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told: list[str] = []
    monkeypatch.setattr(checks, "rank_zero_info", told.append)

    class Data(users.Data):
        def train_dataloader(self) -> Any:
            weights = 1 / Y.bincount()[Y].double()
            return DataLoader(self.train, 10, sampler=WeightedRandomSampler(weights, 40 * N))

    def run(quota: Any, saved: Any = None, resume: str | None = None) -> Any:
        prune, probe = lfp.DataPruning(0.4, 1, quota=quota, **STATIC), users.Probe()
        callbacks = [prune, probe, *([saved] if saved else [])]
        trainer = users.trainer(
            callbacks=callbacks, max_epochs=3, enable_checkpointing=saved is not None
        )
        torch.manual_seed(0)
        data = Data()
        data.setup("fit")
        given: Any = {"datamodule": lfp.FairPruneDataModule(data)}
        if form == "given":
            given = {
                "train_dataloaders": data.train_dataloader(),
                "val_dataloaders": data.val_dataloader(),
            }
        trainer.fit(users.Model(), **given, ckpt_path=resume)
        later = [probe.samples[epoch] for epoch in (1, 2) if epoch in probe.samples]
        counts = [Y[torch.tensor(ids)].bincount() for ids in later]
        return prune, [c / c.sum() for c in counts], probe.samples

    saved = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=10)
    prune, shares, samples = run(lfp.quotas.drop, saved)
    for share in shares:
        assert (share - prune.quota / BUDGET).abs().max() < 0.03
    assert any("classes are drawn in proportion to their quotas" in text for text in told)
    told.clear()
    free, shares, _ = run(None)
    kept = Y[free.selection.indices]
    expected = kept.bincount() / Y.bincount()
    for share in shares:
        assert (share - expected / expected.sum()).abs().max() < 0.03
    assert not told
    path = max(tmp_path.glob("*.ckpt"), key=lambda p: int(p.stem.split("=")[1]))
    again, _, resumed = run(lfp.quotas.drop, resume=str(path))
    assert torch.equal(again.quota, prune.quota)
    for epoch, ids in resumed.items():
        assert samples[epoch][-len(ids) :] == ids


def test_class_without_weight_is_said() -> None:
    class ToZero(pl.Callback):
        def on_validation_end(self, trainer: Any, module: Any) -> None:
            sampler.weights[Y == 2] = 0

    sampler = WeightedRandomSampler(torch.ones(N, dtype=torch.float64), 6 * N)
    loader = DataLoader(users.Blobs(), 10, sampler=sampler)
    with pytest.warns(UserWarning, match="0 for all kept samples of 1 classes, first of class 2"):
        _, samples = fit(loader, ToZero(), quota=lfp.quotas.proportional)
    assert {int(Y[i]) for i in samples[2]} == {0, 1, 3}


def test_replacement_without_weights_draws_as_before() -> None:
    sampler = EpochSampler(9, weights=torch.ones(9), draws=90, kept=torch.tensor([1, 2, 5]))
    before = list(sampler)
    sampler.keep(torch.tensor([1, 2, 5]), torch.arange(9) % 2)
    assert list(sampler) == before


# ----------------------------------------------------------------------------------- batch samplers


class Renamed(BatchSampler):
    pass


@pytest.mark.parametrize("kind", [BatchSampler, Renamed])
@pytest.mark.parametrize("inner", [RandomSampler, SequentialSampler])
def test_torchs_batch_sampler_is_that_of_a_batch_size(kind: Any, inner: Any) -> None:
    data = users.Blobs()
    for drop_last in (False, True):
        batches = kind(inner(data), 10, drop_last)
        found, plain = (
            fit(loader, score=lfp.scores.el2n, keep="hard")
            for loader in (
                DataLoader(data, batch_sampler=batches),
                DataLoader(data, 10, shuffle=inner is RandomSampler, drop_last=drop_last),
            )
        )
        assert found[1] == plain[1]
        assert torch.equal(found[0].selection.indices, plain[0].selection.indices)
        assert set(found[1][3]) <= set(found[0].selection.indices.tolist())


# --------------------------------------------------------------------------- samplers of one's own


class Seeded(Sampler[int]):
    """A permutation by seed and epoch."""

    def __init__(self) -> None:
        self.epoch = 0

    def __len__(self) -> int:
        return N

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(50 + self.epoch)
        return iter(torch.randperm(N, generator=generator).tolist())


class OwnGenerator(Sampler[int]):
    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(3)

    def __len__(self) -> int:
        return N

    def __iter__(self) -> Iterator[int]:
        return iter(torch.randperm(N, generator=self.generator).tolist())


class Shuffles(Sampler[int]):
    """Shuffles its own list in place with a generator of Python, and yields numbers of numpy."""

    def __init__(self) -> None:
        self.order, self.random = list(range(N)), random.Random(2)

    def __len__(self) -> int:
        return N

    def __iter__(self) -> Iterator[Any]:
        self.random.shuffle(self.order)
        return iter(np.array(self.order, dtype=np.uint8))


class Global(Sampler[int]):
    def __len__(self) -> int:
        return N

    def __iter__(self) -> Iterator[int]:
        return iter(np.random.permutation(N).tolist())  # noqa: NPY002


class Part(Sampler[int]):
    """A part of the data set: a split, or a fold."""

    def __len__(self) -> int:
        return 80

    def __iter__(self) -> Iterator[int]:
        return iter(torch.randperm(80).tolist())


class OwnBatches(BatchSampler):
    """Batches in another order."""

    def __init__(self, size: int = 10) -> None:
        super().__init__(RandomSampler(range(N)), size, False)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(sorted(super().__iter__(), key=lambda batch: (len(batch) < 10, batch[0])))


class OfBatches(Sampler[list[int]]):
    """Batches of two batches of another sampler."""

    def __init__(self) -> None:
        self.sampler, self.batch_size = BatchSampler(RandomSampler(range(N)), 5, False), 2

    def __len__(self) -> int:
        return -(-len(self.sampler) // 2)

    def __iter__(self) -> Iterator[list[int]]:
        batches = list(self.sampler)
        for i in range(0, len(batches), 2):
            yield [index for batch in batches[i : i + 2] for index in batch]


OWN: dict[str, Any] = {
    "seeded": lambda: DataLoader(users.Blobs(), 10, sampler=Seeded()),
    "own_generator": lambda: DataLoader(users.Blobs(), 10, sampler=OwnGenerator()),
    "shuffles": lambda: DataLoader(users.Blobs(), 10, sampler=Shuffles()),
    "global": lambda: DataLoader(users.Blobs(), 10, sampler=Global()),
    "list": lambda: DataLoader(users.Blobs(), 10, sampler=[*range(N)][::-1]),
    "batches": lambda: DataLoader(users.Blobs(), batch_sampler=OwnBatches()),
    "of_batches": lambda: DataLoader(users.Blobs(), batch_sampler=OfBatches()),
    "list_of_batches": lambda: DataLoader(
        users.Blobs(), batch_sampler=[list(range(i, min(i + 10, N))) for i in range(0, N, 10)]
    ),
}
ONCE = "each of them is drawn once an epoch"


@pytest.mark.parametrize("name", OWN)
def test_own_order_of_every_sample_once(name: str, tmp_path: Path) -> None:
    loader, probe = OWN[name](), users.Probe()
    with pytest.warns(UserWarning, match=ONCE):
        prune, samples = fit(loader, probe)
    assert probe.batches == {0: len(loader), 1: 5, 2: 5, 3: 5}
    assert sorted(samples[0]) == list(range(N))
    for epoch in (1, 2, 3):
        assert sorted(samples[epoch]) == prune.selection.indices.tolist()
    fixed = name in ("list", "list_of_batches")
    assert (len({tuple(samples[epoch]) for epoch in (1, 2, 3)}) == 1) is fixed


def test_order_is_the_users_without_the_others() -> None:
    with pytest.warns(UserWarning, match=ONCE):
        _, samples = fit(OWN["seeded"]())
    for epoch in range(4):
        sampler = Seeded()
        sampler.set_epoch(epoch)
        kept = set(samples[epoch])
        assert samples[epoch] == [i for i in sampler if i in kept]


def test_batches_of_the_warm_up_are_the_users() -> None:
    loader = OWN["list_of_batches"]()
    with pytest.warns(UserWarning, match=ONCE):
        _, samples = fit(loader)
    assert samples[0] == [i for batch in loader.batch_sampler for i in batch]


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.filterwarnings("ignore:after the warm-up your")
@pytest.mark.parametrize("name", OWN)
def test_own_order_resumes_and_is_not_disturbed(name: str, tmp_path: Path) -> None:
    class Reads(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            list(trainer.train_dataloader)
            if name != "shuffles":  # it is another one then
                list(loader.batch_sampler)

    loader = OWN[name]()
    saved = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=1)
    prune, full = fit(loader, saved, Reads())
    for step in (3, 10, 13, 18):
        loader = OWN[name]()
        again, resumed = fit(loader, resume=str(tmp_path / f"step={step}.ckpt"))
        assert torch.equal(again.selection.indices, prune.selection.indices)
        for epoch, ids in resumed.items():
            assert full[epoch][-len(ids) :] == ids


def test_part_of_the_data_set() -> None:
    with pytest.warns(UserWarning, match=ONCE):
        prune, samples = fit(DataLoader(users.Blobs(), 10, sampler=Part()), quota=None)
    assert sorted(samples[0]) == list(range(80))
    for epoch in (1, 2, 3):
        assert sorted(samples[epoch]) == prune.selection.indices.tolist()


class Balanced(Sampler[int]):
    """As many of every class, with repeats."""

    def __init__(self) -> None:
        self.of = {k: torch.nonzero(k == Y).flatten().tolist() for k in range(4)}

    def __len__(self) -> int:
        return 400

    def __iter__(self) -> Iterator[int]:
        for i in range(400):
            of = self.of[i % 4]
            yield of[int(torch.randint(len(of), ()))]


class BalancedBatches(Balanced):
    def __len__(self) -> int:
        return 50

    def __iter__(self) -> Iterator[Any]:
        drawn = list(super().__iter__())
        return (drawn[8 * i : 8 * i + 8] for i in range(50))


@pytest.mark.parametrize(
    "loader",
    [
        lambda: DataLoader(users.Blobs(), 8, sampler=Balanced()),
        lambda: DataLoader(users.Blobs(), batch_sampler=BalancedBatches()),
    ],
)
def test_sampler_that_repeats_decides_how_often(loader: Any) -> None:
    with pytest.warns(UserWarning, match=r"which samples are kept, and Balanced\w* decides how"):
        prune, samples = fit(loader(), quota=lfp.quotas.proportional)
    kept = set(prune.selection.indices.tolist())
    assert len(samples[0]) == 400
    for epoch in (1, 2, 3):
        assert len(samples[epoch]) == round(400 * BUDGET / N)
        assert set(samples[epoch]) <= kept
    assert set(samples[1]) | set(samples[2]) | set(samples[3]) == kept


def test_sampler_that_draws_none_of_the_kept_says_so() -> None:
    sampler = EpochSampler(5, stream=_stream([1, 1, 2]), kept=torch.tensor([0, 4]))
    with pytest.raises(ValueError, match="your list drew none of the 2 kept samples in epoch 0"):
        list(sampler)


def _stream(order: list[int]) -> Any:
    from lightning_fairprune._loading.stream import UsersStream

    return UsersStream(order, 5, batched=False, seed=0)


def test_few_samples_are_refused_before_training() -> None:
    loader = DataLoader(users.Blobs(), 10, sampler=[1, 2, 3])
    with pytest.raises(ValueError, match="your list draws at most 3 in a warm-up of 1 epochs"):
        fit(loader)


def test_users_sampler_knows_the_epoch() -> None:
    sampler = Seeded()
    with pytest.warns(UserWarning, match=ONCE):
        fit(DataLoader(users.Blobs(), 10, sampler=sampler))
    assert sampler.epoch == 3


# ------------------------------------------------------------------------------------- two ranks


def on_a_rank(name: str, by_hand: bool = False) -> dict[str, Any]:
    prune, probe = lfp.DataPruning(0.4, 1, **STATIC), users.Probe()
    trainer = users.trainer(
        callbacks=[prune, probe],
        max_epochs=3,
        devices=2,
        strategy="ddp",
        use_distributed_sampler=not by_hand,
    )
    torch.manual_seed(trainer.global_rank)
    loader = OWN[name]()
    error = ""
    try:
        trainer.fit(users.Model(), loader, DataLoader(users.Blobs(60), 20))
    except TypeError as caught:
        error = str(caught)
    kept = [] if prune.selection is None else prune.selection.indices.tolist()
    return {"samples": probe.samples, "kept": kept, "error": error}


def test_two_ranks(tmp_path: Path) -> None:
    settings: list[dict[str, Any]] = [{"name": name} for name in ("seeded", "global", "batches")]
    *found, refused = ranks.launch(
        __file__, [*settings, {"name": "seeded", "by_hand": True}], tmp_path
    )
    for first, second in found:
        assert first["kept"] == second["kept"]
        for epoch in "012":
            both = first["samples"][epoch], second["samples"][epoch]
            expected = set(range(N)) if epoch == "0" else set(first["kept"])
            assert set(both[0]) | set(both[1]) == expected
            assert len(set(both[0]) & set(both[1])) == 1  # evens out an odd number
    for record in refused:
        assert "leaves it to your Seeded to share the samples among the ranks" in record["error"]


def test_sampler_that_shares_in_its_own_way_is_refused() -> None:
    class Own(DistributedSampler[Any]):
        def __iter__(self) -> Iterator[int]:
            return iter(range(self.rank, N, 2))

    sampler = Own(users.Blobs(), num_replicas=2, rank=0)
    with pytest.raises(TypeError, match="Own shares the samples among 2 ranks in its own way"):
        fit(DataLoader(users.Blobs(), 10, sampler=sampler))


if __name__ == "__main__":
    ranks.main(on_a_rank)
