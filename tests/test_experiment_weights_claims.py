"""Weight pruning as an experiment: its table, the claims of its paper, and what is refused."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import users
from experiment_grid import WEIGHTS, plain, pruned_by

import lightning_fairprune as lfp
from lightning_fairprune import experiments
from lightning_fairprune.experiments import (
    Baseline,
    Experiment,
    Final,
    Finetune,
    OneFit,
    WeightMethod,
)
from lightning_fairprune.experiments._cells import cells_of
from lightning_fairprune.experiments._claim import markdown as claims_markdown
from lightning_fairprune.experiments._results import Row, markdown


def row(method: str, sparsity: float, seed: int, alpha: float | None) -> Row:
    return Row(
        method, "weights", 1.0, seed, 0.8, 0.5, 0.1, 0.1, 10, 10, 1.0, None, None,
        ("a", "b"), (0.5, 1.0), None, sparsity, alpha,
    )  # fmt: skip


def test_the_table_has_the_interval_of_alpha(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row("a", 0.9, seed, alpha) for seed, alpha in enumerate((1.4, 1.5, 1.6))]
    rows += [row("b", 0.9, 0, None), row("c", 0.9, 0, 1.25)]
    text = markdown(rows)
    # Deviation .1 and t 4.303 of two degrees of freedom: .248; of the 99 % interval 9.925: .573.
    assert "| a | 3 | 1.500 ± 0.248 ? | 0.800 [0.800, 0.800] |" in text
    assert "| b | 1 |  | 0.800 |" in text
    assert "| c | 1 | 1.250 | 0.800 |" in text
    monkeypatch.setitem(sys.modules, "scipy", None)
    assert "| a | 3 | 1.500 [1.400, 1.600] |" in markdown(rows)


NAMES = {
    "by_size": {},  # known by what they do, not by their names
    "by_gradient": pruned_by("gradient"),
    "up": pruned_by("undecayed"),
    "chance": pruned_by("random"),
}


def verdicts(alphas: dict[str, tuple[float, float, float]], names: Any = None) -> list[str]:
    settings = plain(**WEIGHTS | {"weights": names or NAMES, "sparsities": [0.5, 0.9, 0.98]})
    rows = [
        row(name, sparsity, seed, alpha + 0.001 * seed)
        for name, values in alphas.items()
        for sparsity, alpha in zip((0.5, 0.9, 0.98), values, strict=True)
        for seed in (0, 1)
    ]
    found = experiments.claims_of(experiments.build(settings), rows)
    text = claims_markdown(found, "test")
    assert all(claim.text in text for claim in found)
    return [claim.verdict for claim in found]


def test_the_claims_hold_for_the_papers_numbers() -> None:
    published = {
        "by_size": (0.928, 1.057, 1.791),
        "by_gradient": (0.932, 1.128, 1.912),
        "up": (0.920, 1.005, 1.553),
        "chance": (-1.395, -0.968, -0.985),
    }
    assert verdicts(published) == ["holds"] * 5


def test_claims_that_do_not_hold_or_in_part_or_are_not_tested() -> None:
    ours = {"by_size": (0.93, 1.2, 1.1), "by_gradient": (1.1, 1.1, 1.2), "chance": (1.2, 1.5, 1.7)}
    assert verdicts(ours) == ["holds in part"] * 3 + ["not tested", "does not hold"]
    later = {"by_size": {"start": 1, "end": 1}, "up": NAMES["up"]}
    assert verdicts({"by_size": (0.9, 1.0, 1.1), "up": (0.8, 0.9, 1.0)}, later)[3] == "not tested"
    assert verdicts({}) == ["not tested"] * 5


def experiment(**changes: Any) -> Experiment:
    given: dict[str, Any] = {
        "data": users.Data,
        "model": users.Model,
        "final": Final(3),
        "baselines": {"full": Baseline()},
        "sparsities": (0.5,),
        "weights": {"magnitude": WeightMethod()},
        "finetune": Finetune(2),
    }
    return Experiment(**given | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sparsities": (0.5, 1.0)}, r"`sparsities` must be in \(0, 1\).*got 1.0; ratio r is"),
        ({"sparsities": (2,)}, r"`sparsities` must be in \(0, 1\).*got 2"),
        ({"sparsities": ()}, r"`sparsities` must be different numbers, at least one, got \(\)"),
        ({"sparsities": (0.5, 0.5)}, "`sparsities` must be different numbers"),
        ({"baselines": {}}, "`weights` are pruned from the first of `baselines`.*add baselines"),
        ({"baselines": {"magnitude": Baseline()}}, "different names, got 'magnitude' twice"),
        ({"finetune": Finetune()}, r"`finetune.epochs` must be at least 1 .* `weights`, got 0"),
        ({"methods": {"random": experiments.Method()}, "densities": (0.5,)}, "`query.epochs` must"),
        (
            {"one_fit": {"a": OneFit()}, "densities": (0.5, 0.3), "final": Final(1)},
            r"`one_fit` must see more than all samples once.*density 0.5 final.epochs: 1 are 1 times",
        ),
        (
            {"one_fit": {"a": OneFit()}, "densities": (0.5,), "final": Final(1, "epoch_correction")},
            r"density 0.5 final.epochs: 1 are 0.5 times",
        ),
    ],
)  # fmt: skip
def test_impossible_experiments_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        experiment(**changes)


def test_an_experiment_without_data_pruning_is_fine() -> None:
    assert {cell.kind for cell in cells_of(experiment())} == {"baseline", "weights"}
    assert experiment().dense == "full"


@pytest.mark.parametrize(
    ("record", "given", "message"),
    [
        (WeightMethod, {"prune": lambda **_: lfp.WeightPruning(start=2, end=3)}, "must leave start to the exper.*got 2"),
        (WeightMethod, {"prune": lambda **_: lfp.WeightPruning(sparsity=0.7)}, "leave sparsity .*`sparsities`"),
        (WeightMethod, {"start": 3, "end": 2}, "`end` must not be before `start`, got 2 and 3"),
        (WeightMethod, {"start": 1.5}, "`start` must be a whole number"),
        (Finetune, {"epochs": -1}, "`finetune.epochs` must be 0 or more, got -1"),
        (Finetune, {"lr_factor": 0.0}, "`finetune.lr_factor` must be above 0, got 0.0"),
    ],
)  # fmt: skip
def test_impossible_records_are_refused(record: Any, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        record(**given)
