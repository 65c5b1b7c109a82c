"""Methods of an experiment against slow constructions: k-center and the quotas of a strategy's own subset."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import users
from experiment_grid import plain
from torch import Tensor

import lightning_fairprune as lfp
from lightning_fairprune import experiments, quotas, scores
from lightning_fairprune.experiments import Method, _worker
from lightning_fairprune.experiments._cells import Cell, cells_of, needs
from lightning_fairprune.experiments._store import Store
from lightning_fairprune.records.pruning_record import PruningRecord

FORGETTING = {"score": "lightning_fairprune.scores.forgetting", "keep": "hard"}
GEOMETRY = "lightning_fairprune.geometry"
DROP = "lightning_fairprune.quotas.drop"
METHODS: dict[str, Any] = {
    "random": {},
    "k_center": {"score": f"{GEOMETRY}.k_center_distance", "keep": "hard", "score_on": "pass"},
    "k_center+drop": {
        "score": f"{GEOMETRY}.class_k_center",
        "keep": "hard",
        "score_on": "pass",
        "quota": DROP,
    },
    "forgetting": FORGETTING,
    "nucs": {"score": FORGETTING["score"], "quota": "lightning_fairprune.quotas.difficulty"},
    "forgetting+strategyq": FORGETTING | {"quota": "lightning_fairprune.quotas.of_subset"},
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A finished grid with two query models."""
    settings = plain(
        query={"epochs": 4, "models": 2}, methods=METHODS, densities=[0.3], seeds=[0],
        one_fit={}, baselines={},
    )  # fmt: skip
    found = Store(tmp_path_factory.mktemp("methods"))
    _worker.work(settings, found, wanted=lambda: True)
    cells = cells_of(experiments.build(settings))
    assert found.status(cells).finished == {cell.key for cell in cells}
    return found


def chosen(store: Store, name: str) -> lfp.Selection:
    return PruningRecord.load(store.folder(Cell("final", 0, name, 0.3)) / "run").selection


def features_and_labels(store: Store) -> tuple[Tensor, Tensor]:
    """What the first query model hands to its last layer, layer by layer."""
    state = torch.load(store.folder(Cell("query", 0)) / "end.pt", weights_only=True)
    data = users.Blobs()
    return (data.x @ state["net.0.weight"].T + state["net.0.bias"]).relu().double(), data.y


def farthest_first(x: Tensor, budget: int) -> list[int]:
    """Sample after sample, each the farthest from all before."""
    order = [int((x - x.mean(0)).norm(dim=1).argmin())]
    while len(order) < budget:
        nearest = [
            -1.0 if i in order else min(float((x[i] - x[c]).norm()) for c in order)
            for i in range(len(x))
        ]
        order.append(max(range(len(x)), key=nearest.__getitem__))
    return order


def test_k_center_of_all_samples(store: Store) -> None:
    x, _ = features_and_labels(store)
    assert chosen(store, "k_center").indices.tolist() == sorted(farthest_first(x, 31))


def test_k_center_in_every_class_under_quotas(store: Store) -> None:
    x, y = features_and_labels(store)
    selection = chosen(store, "k_center+drop")
    folders = [store.folder(Cell("query", 0, member=m)) / "result.json" for m in (0, 1)]
    facts = [json.loads(path.read_text()) for path in folders]
    recalls = [
        torch.tensor(f["tp"], dtype=torch.float64) / torch.tensor(f["support"]) for f in facts
    ]
    sizes = torch.bincount(y)
    quota = quotas.drop(sizes, torch.stack(recalls).mean(0), budget=31)
    expected = []
    for k, count in enumerate(quota.tolist()):
        own = (y == k).nonzero().flatten()
        expected += own[farthest_first(x[own], count)].tolist()
    assert selection.quota.tolist() == quota.tolist()
    assert selection.indices.tolist() == sorted(expected)


def test_quotas_by_the_difficulty_of_the_query_models(store: Store) -> None:
    record = PruningRecord.load(store.folder(Cell("final", 0, "nucs", 0.3)) / "run")
    difficulty = quotas.class_difficulty(record.score, record.target)
    expected = quotas.difficulty(record.selection.sizes, difficulty, 31)
    assert torch.equal(record.selection.quota, expected)
    drawn = lfp.select(record.target, expected, seed=record.selection.seed)
    assert torch.equal(record.selection.indices, drawn.indices)


def test_k_center_is_taken_from_one_query_model(store: Store) -> None:
    passes = sorted(path.name for path in (store.out / "cells").glob("score-*"))
    assert passes == [
        "score-class_k_center-end-seed0-model0",
        "score-k_center_distance-end-seed0-model0",
    ]
    built = experiments.build(plain(query={"epochs": 4, "models": 2}, methods=METHODS))
    found = needs(Cell("final", 1, "k_center", 0.3), built)
    assert [cell.key for cell in found] == [
        "query-seed1-model0",
        "query-seed1-model1",
        "score-k_center_distance-end-seed1-model0",
    ]


def test_strategyq_has_the_classes_of_the_strategy_and_samples_by_chance(store: Store) -> None:
    alone, selection = chosen(store, "forgetting"), chosen(store, "forgetting+strategyq")
    y = users.Blobs().y
    counts = [sum(int(y[i]) == k for i in alone.indices.tolist()) for k in range(4)]
    assert selection.quota.tolist() == counts
    assert selection.indices.tolist() != alone.indices.tolist()
    expected = lfp.select(y, torch.tensor(counts), seed=0)
    assert selection.indices.tolist() == expected.indices.tolist()
    assert selection.keep == "random"


def test_strategyq_needs_a_strategy() -> None:
    with pytest.raises(ValueError, match=r"of_subset needs the `score` .* got score: null: give"):
        Method(quota=quotas.of_subset)
    assert Method(scores.forgetting, "hard", quotas.of_subset).models_of_score is None
