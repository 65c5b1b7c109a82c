"""The rebuilt loader and its sampler."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)
from torch.utils.data.distributed import DistributedSampler

from lightning_fairprune._loading.index import IndexedBatch, IndexView
from lightning_fairprune._loading.rebuild import (
    check_restrictable,
    rebuild,
    sampled_dataset,
)
from lightning_fairprune._loading.sampler import EpochSampler

N = 23
KEPT = torch.tensor([1, 2, 3, 5, 8, 13, 21])
DATA = TensorDataset(100 + torch.arange(N))  # sample i says 100 + i


def drawn(sampler: EpochSampler, epoch: int | None = None) -> list[int]:
    if epoch is not None:
        sampler.set_epoch(epoch)
    return list(sampler)


def on_ranks(num_replicas: int, epoch: int = 0, **options: Any) -> list[list[int]]:
    return [
        drawn(EpochSampler(N, num_replicas=num_replicas, rank=rank, **options), epoch)
        for rank in range(num_replicas)
    ]


# ---------------------------------------------------------------------------------- EpochSampler


def test_order_depends_on_seed_and_epoch_alone() -> None:
    orders = {}
    for seed in (0, 1, 7):
        for epoch in range(3):
            orders[seed, epoch] = tuple(drawn(EpochSampler(N, seed=seed), epoch))
            torch.manual_seed(epoch)  # the global generator has no say
            assert tuple(drawn(EpochSampler(N, seed=seed), epoch)) == orders[seed, epoch]
            assert sorted(orders[seed, epoch]) == list(range(N))
    # Seed 0 in epoch 1 is seed 1 in epoch 0, as with torch's DistributedSampler.
    assert len(set(orders.values())) == 7


def test_global_generator_is_not_moved() -> None:
    before = torch.get_rng_state()
    drawn(EpochSampler(N, weights=torch.ones(N), draws=N))
    drawn(EpochSampler(N))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("weights", [None, torch.arange(N).float()])
@pytest.mark.parametrize("kept", [None, KEPT])
@pytest.mark.parametrize("epoch", [0, 3])
def test_ranks_deal_out_the_order_of_one(
    kept: Tensor | None, epoch: int, weights: Tensor | None
) -> None:
    options = {"kept": kept, "weights": weights, "draws": None if weights is None else N}
    (alone,) = on_ranks(1, epoch, **options)
    for num_replicas in (2, 3, 5):
        shards = on_ranks(num_replicas, epoch, **options)
        assert len({len(shard) for shard in shards}) == 1
        dealt = [i for turn in zip(*shards, strict=True) for i in turn]
        assert dealt[: len(alone)] == alone  # so global batches are the same
        padding = dealt[len(alone) :]
        assert padding == alone[: len(padding)]
        assert len(padding) < num_replicas


@pytest.mark.parametrize("num_replicas", [2, 3, 4])
def test_drop_last_drops_the_uneven_tail(num_replicas: int) -> None:
    shards = on_ranks(num_replicas, kept=KEPT, drop_last=True)
    times = Counter(i for shard in shards for i in shard)
    assert set(times.values()) == {1}
    assert [len(shard) for shard in shards] == [len(KEPT) // num_replicas] * num_replicas


def test_fewer_samples_than_ranks_are_repeated() -> None:
    shards = on_ranks(5, kept=torch.tensor([4, 9]))
    assert [len(shard) for shard in shards] == [1] * 5
    assert {i for shard in shards for i in shard} == {4, 9}


def test_without_shuffling_the_order_is_that_of_the_data() -> None:
    assert drawn(EpochSampler(N, shuffle=False), 5) == list(range(N))
    assert drawn(EpochSampler(N, kept=KEPT, shuffle=False), 5) == KEPT.tolist()


def test_length_is_what_is_drawn() -> None:
    for num_replicas in (1, 2, 3):
        for kept in (None, KEPT):
            for drop_last in (False, True):
                for draws in (None, 10, 50):
                    sampler = EpochSampler(
                        N, kept=kept, num_replicas=num_replicas, drop_last=drop_last, draws=draws
                    )
                    population = N if kept is None else len(kept)
                    assert len(sampler) == len(drawn(sampler)) == sampler.size_of(population)


def test_keep_takes_effect_in_place_from_the_next_epoch_on() -> None:
    sampler = EpochSampler(N, kept=KEPT)
    loader = DataLoader(DATA, batch_size=2, sampler=sampler)
    running = iter(sampler)
    other = KEPT + 1
    sampler.keep(other)
    assert set(running) == set(KEPT.tolist())
    assert {int(x) - 100 for (batch,) in loader for x in batch} == set(other.tolist())
    sampler.keep(None)
    assert len(sampler) == N
    assert sorted(drawn(sampler)) == list(range(N))


@pytest.mark.parametrize("num_replicas", [1, 2])
@pytest.mark.parametrize("weights", [None, torch.ones(N)])
def test_skip_resumes_inside_its_epoch_exactly(num_replicas: int, weights: Tensor | None) -> None:
    draws = None if weights is None else N
    options = {"kept": KEPT, "weights": weights, "draws": draws, "num_replicas": num_replicas}
    for rank in range(num_replicas):
        whole = EpochSampler(N, rank=rank, **options)
        resumed = EpochSampler(N, rank=rank, epoch=3, skip=2 * num_replicas, **options)
        assert drawn(resumed) == drawn(whole, 3)[2:]
        assert len(resumed) == len(whole)  # the Trainer counts the epoch from its beginning
        assert drawn(resumed, 4) == drawn(whole, 4)
        assert drawn(resumed, 2) == drawn(whole, 2)


def test_weights_are_the_frequencies_among_the_kept() -> None:
    weights = torch.arange(N).float()
    sampler = EpochSampler(N, kept=KEPT, weights=weights, draws=20_000, seed=5)
    times = Counter(drawn(sampler))
    assert set(times) <= set(KEPT.tolist())
    total = sum(times.values())
    assert total == round(20_000 * len(KEPT) / N)  # as many a sample as before
    share = weights[KEPT] / weights[KEPT].sum()
    chi_square = sum(
        (times[i] - total * p) ** 2 / (total * p)
        for i, p in zip(KEPT.tolist(), share.tolist(), strict=True)
    )
    assert chi_square < 22.46  # 99.9 % of the distribution with 6 degrees of freedom


def test_sample_of_weight_zero_is_never_drawn() -> None:
    weights = torch.ones(N)
    weights[[0, 10, N - 1]] = 0
    times = Counter(drawn(EpochSampler(N, weights=weights, draws=5000)))
    assert set(times) == set(range(1, N - 1)) - {10}


def test_weights_that_are_all_zero_are_refused() -> None:
    sampler = EpochSampler(N, kept=KEPT, weights=torch.zeros(N), draws=N)
    with pytest.raises(ValueError, match="weights are 0 for all 7 kept samples"):
        drawn(sampler)


# --------------------------------------------------------------------------------------- rebuild


class WithClass(DataLoader[Any]):
    pass


def nothing(worker: int) -> None: ...


def as_list(samples: Any) -> list[int]:
    return [int(x) for (x,) in samples]


def content(loader: DataLoader[Any]) -> list[int]:
    return [i - 100 for batch in loader for i in batch]


def test_options_of_the_loader_are_kept() -> None:
    options: dict[str, Any] = {
        "num_workers": 2,
        "pin_memory": True,
        "timeout": 17,
        "worker_init_fn": nothing,
        "multiprocessing_context": "spawn",
        "generator": torch.Generator(),
        "prefetch_factor": 3,
        "persistent_workers": True,
        "collate_fn": as_list,
        "drop_last": True,
        "batch_size": 4,
        "in_order": False,
    }
    users = WithClass(DATA, **options)
    rebuilt = rebuild(users, kept=KEPT)
    assert type(rebuilt) is WithClass
    for name in options:
        assert getattr(rebuilt, name) is getattr(users, name), name
    assert rebuilt.dataset is DATA
    carrying = rebuild(users, carry_index=True)
    for name in set(options) - {"collate_fn"}:
        assert getattr(carrying, name) is getattr(users, name), name
    assert carrying.collate_fn.collate is as_list
    assert rebuild(DataLoader(DATA)).num_workers == 0


def test_every_option_of_the_loader_is_kept() -> None:
    by_hand = {"dataset", "sampler", "batch_sampler", "collate_fn", "_iterator"}
    users = DataLoader(DATA, 4, num_workers=1, drop_last=True)
    rebuilt = rebuild(users, kept=KEPT, carry_index=True)
    options = {name for name in vars(users) if not name.startswith("__pl_")}
    same = {name for name in options if vars(rebuilt)[name] is vars(users)[name]}
    assert options == set(vars(rebuilt)) == same | by_hand
    assert type(users) is DataLoader
    assert isinstance(users.sampler, SequentialSampler)


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("shuffle", [False, True])
def test_kept_samples_come_once_each(shuffle: bool, drop_last: bool) -> None:
    users = DataLoader(DATA, 3, shuffle=shuffle, drop_last=drop_last, collate_fn=as_list)
    rebuilt = rebuild(users, kept=KEPT)
    found = content(rebuilt)
    assert len(set(found)) == len(found) == (6 if drop_last else 7)
    assert set(found) <= set(KEPT.tolist())
    assert (found == KEPT.tolist()[: len(found)]) is not shuffle
    assert len(rebuilt) == (2 if drop_last else 3)


def test_batches_carry_the_indices_of_their_samples() -> None:
    users = DataLoader(DATA, 4, shuffle=True, collate_fn=as_list)
    for kept in (None, KEPT):
        batches = list(rebuild(users, kept=kept, carry_index=True))
        assert all(type(batch) is IndexedBatch for batch in batches)
        for batch in batches:
            assert [100 + i for i in batch.indices.tolist()] == batch.batch
            assert batch.indices.dtype == torch.int64
        # the order is the one without indices
        plain = list(rebuild(users, kept=kept))
        assert [batch.batch for batch in batches] == plain


def test_samples_seen_are_not_seen_again() -> None:
    users = DataLoader(DATA, 4, shuffle=True, collate_fn=as_list)
    whole = content(rebuild(users, epoch=2))
    resumed = rebuild(users, epoch=2, samples_seen=12)
    assert content(resumed) == whole[12:]
    resumed.sampler.set_epoch(3)
    assert len(content(resumed)) == N


def test_loader_with_a_state_finds_its_own_way_back() -> None:
    class Stateful(DataLoader[Any]):
        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state: dict[str, Any]) -> None: ...

    users = Stateful(DATA, batch_size=4, shuffle=True, collate_fn=as_list)
    assert content(rebuild(users, samples_seen=12)) == content(rebuild(users))


def test_weighted_sampler_keeps_its_weights() -> None:
    weights = torch.arange(N).float()
    sampler = WeightedRandomSampler(weights.tolist(), 2000)
    users = DataLoader(DATA, 50, sampler=sampler, collate_fn=as_list)
    everything = Counter(content(rebuild(users)))
    assert sum(everything.values()) == 2000
    assert 0 not in everything
    assert everything[22] > everything[5]
    some = Counter(content(rebuild(users, kept=KEPT)))
    assert set(some) <= set(KEPT.tolist())
    assert sum(some.values()) == round(2000 * len(KEPT) / N)


def test_random_sampler_with_replacement_stays_so() -> None:
    sampler = RandomSampler(DATA, replacement=True, num_samples=400)
    found = Counter(content(rebuild(DataLoader(DATA, 50, sampler=sampler, collate_fn=as_list))))
    assert sum(found.values()) == 400
    assert len(set(found.values())) > 1


@pytest.mark.parametrize("num_samples", [10, 60])
def test_random_sampler_keeps_its_number_of_samples(num_samples: int) -> None:
    sampler = RandomSampler(DATA, num_samples=num_samples)
    users = DataLoader(DATA, 5, sampler=sampler, collate_fn=as_list)
    found = Counter(content(rebuild(users)))
    assert sum(found.values()) == num_samples
    assert max(found.values()) - min(found[i] for i in range(N)) <= 1  # without replacement
    some = content(rebuild(users, kept=KEPT))
    assert len(some) == round(num_samples * len(KEPT) / N)
    assert set(some) <= set(KEPT.tolist())


class RenamedSubset(SubsetRandomSampler):
    pass


@pytest.mark.parametrize("kind", [SubsetRandomSampler, RenamedSubset])
def test_part_of_a_subset_random_sampler_is_the_data_set(kind: Any) -> None:
    part = [20, 3, 7, 11, 5]
    users = DataLoader(DATA, 2, sampler=kind(part), collate_fn=as_list)
    dataset: Any = sampled_dataset(users)
    assert [int(x) - 100 for (x,) in (dataset[i] for i in range(5))] == part
    assert sorted(content(rebuild(users))) == sorted(part)
    assert sorted(content(rebuild(users, kept=torch.tensor([0, 3])))) == [11, 20]
    for batch in rebuild(users, carry_index=True):
        assert [100 + part[i] for i in batch.indices.tolist()] == batch.batch


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("drop_last", [False, True])
def test_distributed_sampler_brings_its_own_shards(shuffle: bool, drop_last: bool) -> None:
    found = []
    for rank in range(2):
        sampler = DistributedSampler(
            DATA, num_replicas=2, rank=rank, shuffle=shuffle, drop_last=drop_last
        )
        users = DataLoader(DATA, 4, sampler=sampler, collate_fn=as_list)
        # What the Trainer says of ranks does not count here.
        found.append(content(rebuild(users, num_replicas=7, rank=3)))
        assert len(found[-1]) == len(sampler)
    assert len(set(found[0] + found[1])) == (N - 1 if drop_last else N)
    assert len(set(found[0]) & set(found[1])) == (0 if drop_last else 1)
    assert (found[0][:3] == [0, 2, 4]) is not shuffle


def test_shards_come_from_the_arguments_otherwise() -> None:
    users = DataLoader(DATA, 4, shuffle=True, collate_fn=as_list)
    first, second = (content(rebuild(users, num_replicas=2, rank=rank)) for rank in (0, 1))
    assert len(first) == len(second) == 12
    assert set(first) | set(second) == set(range(N))


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # torchdata 0.11 with torch 2.15
def test_torchdatas_loader_is_rebuilt() -> None:
    torchdata = pytest.importorskip("torchdata.stateful_dataloader")
    for shuffle in (False, True):
        users = torchdata.StatefulDataLoader(DATA, 4, shuffle=shuffle, collate_fn=as_list)
        rebuilt = rebuild(users, kept=KEPT)
        assert type(rebuilt) is type(users)
        assert (content(rebuilt) == KEPT.tolist()) is not shuffle


# ------------------------------------------------------------------------------------- IndexView


class OneByOne(Dataset[Any]):
    tokens = "abc"

    def __len__(self) -> int:
        return 9

    def __getitem__(self, i: int) -> int:
        return 10 * i


class AtOnce(OneByOne):
    def __getitems__(self, indices: list[int]) -> list[int]:
        self.asked = [*getattr(self, "asked", []), indices]
        return [10 * i for i in indices]


def test_view_fetches_as_the_data_set_does() -> None:
    at_once = AtOnce()
    for dataset in (OneByOne(), at_once, Subset(OneByOne(), range(9))):
        fetched = IndexView(dataset).__getitems__([3, 1])
        assert (fetched.samples, fetched.indices) == ([30, 10], [3, 1])
    assert at_once.asked == [[3, 1]]


def test_view_looks_like_the_data_set() -> None:
    view: Any = IndexView(OneByOne())
    assert len(view) == 9
    assert view[4] == 40
    assert view.tokens == "abc"
    with pytest.raises(AttributeError, match="no_such"):
        _ = view.no_such


def test_view_and_collate_can_be_sent_to_workers() -> None:
    rebuilt = rebuild(DataLoader(DATA, 4, collate_fn=as_list), carry_index=True)
    view, collate = pickle.loads(pickle.dumps((rebuilt.dataset, rebuilt.collate_fn)))
    batch = collate(view.__getitems__([5, 2]))
    assert (batch.batch, batch.indices.tolist()) == ([105, 102], [5, 2])


# ---------------------------------------------------------------------------------------- errors


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(5))


class Endless(Sampler[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(N))


class OwnDistributed(DistributedSampler[Any]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(N))


class Renamed(RandomSampler):
    """A subclass that draws as torch does."""


REFUSED: dict[str, tuple[Any, str]] = {
    "dict_of_loaders": ({"a": DataLoader(DATA)}, "must return one torch DataLoader.*got dict"),
    "list_of_loaders": ([DataLoader(DATA)], "must return one torch DataLoader.*got list"),
    "nothing": (None, "got NoneType"),
    "iterable": (DataLoader(Stream()), r"an iterable dataset \(Stream\) has no stable sample"),
    "no_batches": (DataLoader(DATA, batch_size=None), "give the DataLoader a `batch_size`"),
    "endless": (DataLoader(DATA, sampler=Endless()), "a sampler of type Endless has no length"),
    "distributed_subclass": (
        DataLoader(DATA, sampler=OwnDistributed(DATA, num_replicas=2, rank=0)),
        "a sampler of type OwnDistributed shares the samples among 2 ranks in its own way",
    ),
    "not_indices": (
        DataLoader(DATA, sampler=["a", "b"]),
        "the sampler list must yield indices from 0 to 22",
    ),
    "out_of_range": (DataLoader(DATA, sampler=[3, N]), "list must yield indices from 0 to 22"),
    "uneven_batches": (
        DataLoader(DATA, batch_sampler=[[1, 2], [3], [4, 5]]),
        "the batch sampler list yields batches of 1 to 2 samples",
    ),
    "weighted_without_replacement": (
        DataLoader(DATA, sampler=WeightedRandomSampler([1.0] * N, 5, replacement=False)),
        "a WeightedRandomSampler without replacement cannot be restricted",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_loader_that_cannot_be_restricted_is_named(name: str) -> None:
    loader, match = REFUSED[name]
    with pytest.raises(TypeError, match=match):
        rebuild(loader)


def test_subclass_that_draws_as_torch_does_is_fine() -> None:
    check_restrictable(DataLoader(DATA, sampler=Renamed(DATA)))
