"""What the Trainer does before and after the swap, on one process and on two."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import ranks
import scenario
import users

from lightning_fairprune.history import RecallHistory

N, BATCH, DENSITY = 103, 10, 0.4
KEPT = 41  # round(0.4 * 103)
FULL_BATCHES, SHORT_BATCHES = 11, 5

TRAINERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "limit_fraction": {"limit_train_batches": 0.5},
    "limit_batches": {"limit_train_batches": 4},
    "val_twice": {"val_check_interval": 0.5},
    "accumulate": {"accumulate_grad_batches": 3},
    "users_reload": {"reload_dataloaders_every_n_epochs": 2},
    "no_sampler": {"use_distributed_sampler": False},
}


def expected(trainer: dict[str, Any], batches: int) -> int:
    limit = trainer.get("limit_train_batches", 1.0)
    return min(limit, batches) if isinstance(limit, int) else int(limit * batches)


def check(record: dict[str, Any], trainer: dict[str, Any]) -> None:
    full, short = expected(trainer, FULL_BATCHES), expected(trainer, SHORT_BATCHES)
    for epoch in map(str, range(4)):
        batches = full if int(epoch) < 2 else short
        assert record["planned"][epoch] == batches, "num_training_batches, the bar's total"
        assert record["batches"][epoch] == batches
        assert record["validations"][epoch] == (2 if "val_check_interval" in trainer else 1)
    assert record["bar"] == short
    assert record["reload"] == trainer.get("reload_dataloaders_every_n_epochs", 0)
    assert len(record["kept"]) == KEPT
    assert sum(record["quota"]) == KEPT


def strings(record: dict[str, Any]) -> dict[str, Any]:
    """As it reads after a journey through JSON, whose keys are strings."""
    result: dict[str, Any] = json.loads(json.dumps(record))
    return result


@pytest.mark.parametrize("form", ["wrapper", "datamodule", "module"])
@pytest.mark.parametrize("name", TRAINERS)
@pytest.mark.filterwarnings("ignore:.*were never observed in the warm-up")
def test_one_process(name: str, form: str) -> None:
    record = strings(scenario.run(form=form, trainer=TRAINERS[name]))
    check(record, TRAINERS[name])
    if "limit_train_batches" in TRAINERS[name]:
        return
    for epoch, samples in record["samples"].items():
        size = N if int(epoch) < 2 else KEPT
        assert len(samples) == len(set(samples)) == size
    # A fresh subset each epoch: the last one drawn is for an epoch that never came.
    assert set(record["samples"]["2"]) != set(record["samples"]["3"])


def test_static_subset_is_the_selection() -> None:
    prune = {"resample_every": None, "update_every": None}
    record = strings(scenario.run(prune=prune))
    for epoch in "23":
        assert sorted(record["samples"][epoch]) == record["kept"]


def test_two_workers_give_the_batches_of_none() -> None:
    alone, with_workers = scenario.run(), scenario.run(workers=2)
    assert alone["samples"] == with_workers["samples"]
    assert alone["weights"] == with_workers["weights"]


@pytest.fixture(scope="module")
def on_two_ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """All fits on two ranks in one launch: name -> the two ranks' records."""
    folder = tmp_path_factory.mktemp("ddp")
    ddp = {"devices": 2, "strategy": "ddp"}
    fits: dict[str, dict[str, Any]] = {
        name: {"trainer": ddp | options, "batch_size": BATCH // 2, "sharded": name == "no_sampler"}
        for name, options in TRAINERS.items()
    }
    static = {"resample_every": None, "update_every": None}
    for name, prune in SAME_SUBSET.items():
        fits[name] = {"trainer": ddp, "batch_size": BATCH // 2, "prune": prune | static, "n": 100}
    fits["form_datamodule"] = fits["plain"] | {"form": "datamodule"}
    fits["form_module"] = fits["plain"] | {"form": "module", "workers": 1}
    monitor = {"reference": "fit_start", "dirpath": str(folder / "monitored")}
    fits["monitored"] = fits["plain"] | {"monitor": monitor}
    return launch(fits, folder)


SAME_SUBSET: dict[str, dict[str, Any]] = {
    "random_proportional": {"quota": "proportional"},
    "el2n": {"score": "el2n", "keep": "hard", "quota": "proportional"},
    "forgetting": {"score": "forgetting", "keep": "hard", "quota": "proportional"},
}


def launch(fits: dict[Any, Any], folder: Path) -> dict[Any, list[dict[str, Any]]]:
    """Fits on two ranks: name -> the two ranks' records."""
    return dict(zip(fits, ranks.launch(scenario.__file__, [*fits.values()], folder), strict=True))


@pytest.mark.parametrize("name", TRAINERS)
def test_two_ranks(name: str, on_two_ranks: dict[str, list[dict[str, Any]]]) -> None:
    first, second = on_two_ranks[name]
    check(first, TRAINERS[name])
    check(second, TRAINERS[name])
    for what in ("kept", "quota", "history", "weights"):
        assert first[what] == second[what], what
    if "limit_train_batches" in TRAINERS[name]:
        return
    for epoch in map(str, range(4)):
        mine, theirs = first["samples"][epoch], second["samples"][epoch]
        size = N if int(epoch) < 2 else KEPT
        padding = -size % 2  # an odd set is evened out by one repeated sample
        assert len(mine) == len(theirs) == (size + padding) // 2
        assert len(set(mine) | set(theirs)) == size
        assert len(set(mine) & set(theirs)) == padding


@pytest.mark.parametrize("form", ["form_datamodule", "form_module"])
def test_forms_agree_on_two_ranks(form: str, on_two_ranks: dict[str, list[dict[str, Any]]]) -> None:
    for rank in (0, 1):
        for what in ("kept", "history", "samples"):
            assert on_two_ranks[form][rank][what] == on_two_ranks["plain"][rank][what]


def test_two_ranks_see_the_global_batches_of_one(
    on_two_ranks: dict[str, list[dict[str, Any]]],
) -> None:
    alone = strings(scenario.run())
    first, second = on_two_ranks["plain"]
    for epoch in "01":
        one = alone["samples"][epoch]
        for batch in range(FULL_BATCHES - 1):
            half = slice(batch * BATCH // 2, (batch + 1) * BATCH // 2)
            both = first["samples"][epoch][half] + second["samples"][epoch][half]
            assert sorted(both) == sorted(one[batch * BATCH : (batch + 1) * BATCH])


@pytest.mark.parametrize("name", SAME_SUBSET)
def test_one_and_two_ranks_keep_the_same_samples(
    name: str, on_two_ranks: dict[str, list[dict[str, Any]]]
) -> None:
    static = {"resample_every": None, "update_every": None}
    # 100 samples in batches of 10: with an uneven tail the ranks repeat a sample, so that the models,
    # and with them the scores, would differ by more than rounding.
    alone = scenario.run(prune=SAME_SUBSET[name] | static, n=100)
    overlap = len(set(alone["kept"]) & set(on_two_ranks[name][0]["kept"])) / len(alone["kept"])
    print(f"{name}: {overlap:.3f} of the kept samples are the same on one rank and on two")
    # Where no score decides the draw is the same; a score may differ in the last bit.
    assert overlap == 1 if name == "random_proportional" else overlap >= 0.95


def test_recalls_are_those_of_both_ranks(on_two_ranks: dict[str, list[dict[str, Any]]]) -> None:
    first, second = on_two_ranks["monitored"]
    for what in ("evaluations", "reference", "support", "alpha"):
        assert first[what] == second[what], what
    assert [e[1] for e in first["evaluations"]] == [1, 2, 3, 4]
    assert [e[3] for e in first["evaluations"]] == [False, False, True, True]
    # 60 samples are 30 a rank: none is repeated.
    assert first["support"] == {"val": users.Blobs(60, seed=1).y.bincount().tolist()}
    # The model before training is the same on one process.
    alone = scenario.run(monitor={"reference": "fit_start"})
    assert first["reference"] == alone["reference"]
    # Rank 0 alone has written the files.
    read = RecallHistory.load(first["monitor"]["dirpath"])
    assert [e.counts.tp.tolist() for e in read.evaluations] == [e[4] for e in first["evaluations"]]
