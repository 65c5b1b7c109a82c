"""Weight pruning as an experiment: what its cells do, against the same by hand; alpha, tables, claims, errors."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import users
from experiment_grid import plain, results, times
from rich.console import Console
from torch.optim import lr_scheduler

import lightning_fairprune as lfp
from lightning_fairprune import criteria, experiments
from lightning_fairprune.experiments import (
    Baseline,
    Experiment,
    Final,
    Finetune,
    OneFit,
    WeightMethod,
    _worker,
)
from lightning_fairprune.experiments import _config as config
from lightning_fairprune.experiments._cells import Cell, cells_of, needs
from lightning_fairprune.experiments._claim import markdown as claims_markdown
from lightning_fairprune.experiments._results import Row, markdown, rows_of, write_tables
from lightning_fairprune.experiments._store import Store
from lightning_fairprune.experiments._summary import summarise
from lightning_fairprune.experiments._weights import Slower, check_dense
from lightning_fairprune.sparsity import SparsityRecord


def pruned_by(criterion: str, **more: Any) -> dict[str, Any]:
    given = {"criterion": f"lightning_fairprune.criteria.{criterion}", **more}
    return {"prune": {"class_path": "WeightPruning", "init_args": given}}


GRID: dict[str, Any] = {
    "methods": {},
    "one_fit": {},
    "densities": [],
    "seeds": [0, 1],
    "sparsities": [0.5, 0.9],
    "weights": {"magnitude": {}, "undecayed": pruned_by("undecayed", num_batches=2)},
    "finetune": {"epochs": 2, "lr_factor": 0.5},
}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Store]:
    settings = plain(**GRID)
    store = Store(tmp_path_factory.mktemp("weights"))
    _worker.work(settings, store, wanted=lambda: True)
    cells = cells_of(experiments.build(settings))
    assert store.status(cells).finished == {cell.key for cell in cells}
    return settings, store


def result(store: Store, cell: Cell) -> dict[str, Any]:
    found = store.result(cell)
    assert found is not None
    return found


def dense_of(store: Store, seed: int) -> dict[str, torch.Tensor]:
    path = store.folder(Cell("baseline", seed, "full")) / "end.pt"
    state: dict[str, torch.Tensor] = torch.load(path, weights_only=True)
    return state


# ------------------------------------------------------------------------------------------- cells


def test_cells_and_what_they_need() -> None:
    built = experiments.build(plain(**GRID | {"seeds": [3]}))
    keys = [cell.key for cell in cells_of(built)]
    assert keys == [
        "baseline-full-seed3",
        "weights-magnitude-sparsity0.5-seed3",
        "weights-undecayed-sparsity0.5-seed3",
        "weights-magnitude-sparsity0.9-seed3",
        "weights-undecayed-sparsity0.9-seed3",
    ]
    cell = Cell("weights", 3, "magnitude", sparsity=0.5)
    assert [need.key for need in needs(cell, built)] == ["baseline-full-seed3"]
    assert cell.label == "magnitude, sparsity 0.5, seed 3"
    assert cell.in_table


def test_a_cell_is_the_dense_model_pruned_and_trained_on(
    done: tuple[dict[str, Any], Store],
) -> None:
    _, store = done
    for name, criterion in (("magnitude", criteria.magnitude), ("undecayed", criteria.undecayed)):
        pl.seed_everything(1, workers=True, verbose=False)
        data, model = users.Data(), users.Model(lr=0.05)  # half of its 0.1
        model.load_state_dict(dense_of(store, 1))
        prune = lfp.WeightPruning(criterion, 0.9, start=0, end=0, seed=1, num_batches=2)
        counted = lfp.RecallMonitor(figures=False)
        trainer = users.trainer(max_epochs=2, callbacks=[prune, counted], limit_val_batches=0)
        trainer.fit(model, datamodule=data)
        trainer.test(model, datamodule=data, verbose=False)
        found = result(store, Cell("weights", 1, name, sparsity=0.9))
        assert found["recall"] == counted.counts["test"].recall.tolist()
        assert (found["samples_seen"], found["steps"]) == (206, 22)


def test_magnitude_takes_the_smallest_dense_weights(done: tuple[dict[str, Any], Store]) -> None:
    _, store = done
    cell = Cell("weights", 0, "magnitude", sparsity=0.5)
    record = SparsityRecord.load(store.folder(cell) / "run")
    assert len(record.steps) == 1
    assert (record.steps[0].epoch, record.steps[0].step, record.steps[0].total) == (0, 0, 0.5)
    weight = dense_of(store, 0)["net.0.weight"]
    # The last linear layer stays dense: half of the first one's 128 weights are gone.
    model = users.Model()
    model.load_state_dict(dense_of(store, 0))
    kept = lfp.masks.globally(criteria.magnitude(model, parameters=["net.0.weight"]), 0.5)
    smallest = weight.abs().flatten().argsort()[:64]
    expected = torch.ones(128, dtype=torch.bool).index_fill_(0, smallest, False)
    assert torch.equal(kept["net.0.weight"].flatten(), expected)
    assert record.settings["seed"] == 0


def test_alpha_is_against_the_dense_model_of_the_same_seed(
    done: tuple[dict[str, Any], Store],
) -> None:
    settings, store = done
    for row in rows_of(store, cells_of(experiments.build(settings))):
        if row.kind == "baseline":
            assert row.alpha is None
            assert row.sparsity == 0
            continue
        before = result(store, Cell("baseline", row.seed, "full"))["recall"]
        after = [float(value) for value in row.recall if value is not None]
        mean_before, mean_after = sum(before) / len(before), sum(after) / len(after)
        balance = [(value - mean_before) / mean_before for value in before]
        changed = [(value - mean_after) / mean_after for value in after]
        product = sum(x * y for x, y in zip(balance, changed, strict=True))
        assert row.alpha == pytest.approx(product / sum(x * x for x in balance))


@pytest.mark.parametrize(
    "make",
    [
        lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
        lambda o: lr_scheduler.MultiStepLR(o, [2, 4], 0.3),
        lambda o: lr_scheduler.CosineAnnealingLR(o, 6, eta_min=0.01),
        lambda o: lr_scheduler.OneCycleLR(o, 0.7, total_steps=8),
        lambda o: lr_scheduler.SequentialLR(
            o, [lr_scheduler.ConstantLR(o, 0.5, 2), lr_scheduler.ExponentialLR(o, 0.9)], [3]
        ),
    ],
    ids=["lambda", "multistep", "cosine", "onecycle", "sequential"],
)
def test_learning_rates_are_multiplied_all_along(make: Any) -> None:
    def rates(factor: float) -> list[float]:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.2, momentum=0.9)
        scheduler = make(optimizer)
        configs = [SimpleNamespace(scheduler=scheduler)]
        trainer: Any = SimpleNamespace(optimizers=[optimizer], lr_scheduler_configs=configs)
        Slower(factor).on_train_start(trainer, users.Model())
        found = []
        for _ in range(7):
            found.append(float(optimizer.param_groups[0]["lr"]))
            optimizer.step()
            scheduler.step()
        return found

    assert rates(0.25) == pytest.approx([0.25 * rate for rate in rates(1.0)])


def test_gradual_pruning_inside_the_fine_tuning(tmp_path: Path) -> None:
    gradual = pruned_by("magnitude") | {"start": 1, "end": 2}
    changes = {"weights": {"gradual": gradual}, "sparsities": [0.8], "seeds": [0]}
    settings = plain(**GRID | changes | {"finetune": {"epochs": 3}})
    _worker.work(settings, store := Store(tmp_path), wanted=lambda: True)
    cell = Cell("weights", 0, "gradual", sparsity=0.8)
    steps = SparsityRecord.load(store.folder(cell) / "run").steps
    assert [step.epoch for step in steps] == [1, 2]
    assert steps[0].total < steps[1].total == pytest.approx(0.8, abs=1 / 128)


# ------------------------------------------------------------------------------- settings, restarts


@pytest.mark.parametrize(
    ("changes", "concerned"),
    [
        ({"finetune": {"epochs": 3, "lr_factor": 0.5}}, {"weights"}),
        ({"finetune": {"epochs": 2}}, {"weights"}),
        ({"final": {"epochs": 3}}, {"weights", "baseline"}),
        ({"sparsities": [0.3]}, set()),
        ({"weights": {"magnitude": {"start": 1, "end": 1}}}, {"weights"}),
        ({"weights": {"magnitude": pruned_by("magnitude", floor=2)}}, {"weights"}),
        ({"weights": {"magnitude": {}, "random": pruned_by("random")}}, set()),
        ({"baselines": {"full": {}, "other": {}}}, set()),
        ({"baselines": {"other": {}, "full": {}}}, {"weights"}),  # another dense model
    ],
    ids=str,
)
def test_results_depend_on_their_own_settings_only(
    changes: dict[str, Any], concerned: set[str]
) -> None:
    before, now = plain(**GRID), plain(**GRID | changes)
    cells = [Cell("weights", 0, "magnitude", sparsity=0.5), Cell("baseline", 0, "full")]
    found = {
        cell.kind
        for cell in cells
        if config.differences(config.settings_of(cell, before), config.settings_of(cell, now))
    }
    assert found == concerned


def test_weights_can_be_added_to_a_folder_that_has_kept_none(tmp_path: Path) -> None:
    before = plain(**GRID | {"weights": {}, "sparsities": [], "seeds": [0]})
    _worker.work(before, store := Store(tmp_path), wanted=lambda: True)
    dense = Cell("baseline", 0, "full")
    assert not (store.folder(dense) / "end.pt").exists()
    settings = plain(**GRID | {"seeds": [0], "sparsities": [0.5]})
    with pytest.raises(ValueError, match=r"weights of full, seed 0, .* remove '.*full-seed0', and"):
        experiments.run(settings, tmp_path)
    for path in store.folder(dense).glob("*.json"):
        path.unlink()  # as if it were removed
    built = experiments.build(settings)
    check_dense(store, cells_of(built), built)
    _worker.work(settings, store, wanted=lambda: True)
    assert times(tmp_path, "finished")["baseline-full-seed0"] == 2
    assert len(store.status(cells_of(built)).finished) == 3


# ----------------------------------------------------------------------------------- tables, claims


def test_every_file_is_written(done: tuple[dict[str, Any], Store]) -> None:
    settings, store = done
    built = experiments.build(settings)
    cells = cells_of(built)
    tables = write_tables(rows_of(store, cells), built.name, store.out)
    console = Console(file=io.StringIO(), width=300)
    files = {
        str(path.relative_to(store.out)) for path in summarise(built, store, cells, tables, console)
    }
    assert {
        "sparsities.png",
        "report/sparsity0.5/index.html",
        "report/sparsity0.9/index.html",
    } <= files
    assert "densities.png" not in files
    lines = results(store.out)
    assert [line["sparsity"] for line in lines] == ["0.0"] * 2 + ["0.5"] * 4 + ["0.9"] * 4
    assert [bool(line["alpha"]) for line in lines] == [False] * 2 + [True] * 8
    page = (store.out / "report" / "sparsity0.9" / "index.html").read_text()
    assert "undecayed" in page
    table = (store.out / "table.md").read_text()
    assert table.index("## all data") < table.index("## sparsity 0.5 (ratio 2)")
    assert "## sparsity 0.9 (ratio 10)" in table
    claims = (store.out / "claims.md").read_text()
    assert "Recall distortion: Good et al." in claims
    assert "DRoP" not in claims  # no density: nothing of that paper is tried


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
    monkeypatch.setitem(__import__("sys").modules, "scipy", None)
    assert "| a | 3 | 1.500 [1.400, 1.600] |" in markdown(rows)


NAMES = {
    "by_size": {},  # known by what they do, not by their names
    "by_gradient": pruned_by("gradient"),
    "up": pruned_by("undecayed"),
    "chance": pruned_by("random"),
}


def verdicts(alphas: dict[str, tuple[float, float, float]], names: Any = None) -> list[str]:
    settings = plain(**GRID | {"weights": names or NAMES, "sparsities": [0.5, 0.9, 0.98]})
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
    ours = {
        "by_size": (0.93, 1.2, 1.1),
        "by_gradient": (1.1, 1.1, 1.2),
        "chance": (1.2, 1.5, 1.7),
    }
    assert verdicts(ours) == [
        "holds in part",
        "holds in part",
        "holds in part",
        "not tested",
        "does not hold",
    ]
    later = {"by_size": {"start": 1, "end": 1}, "up": NAMES["up"]}
    assert verdicts({"by_size": (0.9, 1.0, 1.1), "up": (0.8, 0.9, 1.0)}, later)[3] == "not tested"
    assert verdicts({}) == ["not tested"] * 5


# -------------------------------------------------------------------------------------------- errors


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
    ("given", "message"),
    [
        ({"prune": lambda **_: lfp.WeightPruning(start=2, end=3)}, "must leave start to the exper.*got 2"),
        ({"prune": lambda **_: lfp.WeightPruning(sparsity=0.7)}, "leave sparsity .*`sparsities`"),
        ({"start": 3, "end": 2}, "`end` must not be before `start`, got 2 and 3"),
        ({"start": 1.5}, "`start` must be a whole number"),
    ],
)  # fmt: skip
def test_impossible_weight_methods_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WeightMethod(**given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epochs": -1}, "`finetune.epochs` must be 0 or more, got -1"),
        ({"lr_factor": 0.0}, "`finetune.lr_factor` must be above 0, got 0.0"),
    ],
)
def test_impossible_fine_tuning_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Finetune(**given)


def test_an_undefined_alpha_is_left_out(tmp_path: Path) -> None:
    """A dense model without differences between classes has none that could grow."""
    changes = {"sparsities": [0.5], "seeds": [0], "weights": {"magnitude": {}}}
    settings = plain(**GRID | changes)
    _worker.work(settings, store := Store(tmp_path), wanted=iter([True, False]).__next__)
    path = store.folder(Cell("baseline", 0, "full")) / "result.json"
    equal = json.loads(path.read_text()) | {"recall": [0.5] * 4}
    path.write_text(json.dumps(equal))
    _worker.work(settings, store, wanted=lambda: True)
    found = result(store, Cell("weights", 0, "magnitude", sparsity=0.5))
    assert found["alpha"] is None
    assert math.isfinite(found["average"])
