"""Weight pruning as an experiment: what its cells do, against the same by hand; alpha, restarts, files."""

from __future__ import annotations

import io
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import users
from experiment_grid import WEIGHTS, plain, pruned_by, results, times
from rich.console import Console
from torch.optim import lr_scheduler

import lightning_fairprune as lfp
from lightning_fairprune import criteria, experiments
from lightning_fairprune._files import write_json
from lightning_fairprune.experiments import _config as config
from lightning_fairprune.experiments import _worker
from lightning_fairprune.experiments._cells import Cell, cells_of, needs
from lightning_fairprune.experiments._results import rows_of, write_tables
from lightning_fairprune.experiments._store import Store, read_result
from lightning_fairprune.experiments._summary import summarise
from lightning_fairprune.experiments._weights import Slower, check_dense
from lightning_fairprune.records.sparsity_record import SparsityRecord

Done = tuple[dict[str, Any], Store]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    settings = plain(**WEIGHTS)
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


def test_cells_and_what_they_need() -> None:
    built = experiments.build(plain(**WEIGHTS | {"seeds": [3]}))
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


def test_a_cell_is_the_dense_model_pruned_and_trained_on(done: Done) -> None:
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


def test_alpha_is_against_the_dense_model_of_the_same_seed(done: Done) -> None:
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
@pytest.mark.filterwarnings("ignore:The epoch parameter")  # torch 2.4's own SequentialLR
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
    settings = plain(**WEIGHTS | changes | {"finetune": {"epochs": 3}})
    _worker.work(settings, store := Store(tmp_path), wanted=lambda: True)
    cell = Cell("weights", 0, "gradual", sparsity=0.8)
    steps = SparsityRecord.load(store.folder(cell) / "run").steps
    assert [step.epoch for step in steps] == [1, 2]
    assert steps[0].total < steps[1].total == pytest.approx(0.8, abs=1 / 128)


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
    # Of a set in its order the name would differ between processes.
    ids=lambda value: str(sorted(value)) if isinstance(value, set) else str(value),
)
def test_results_depend_on_their_own_settings_only(
    changes: dict[str, Any], concerned: set[str]
) -> None:
    before, now = plain(**WEIGHTS), plain(**WEIGHTS | changes)
    cells = [Cell("weights", 0, "magnitude", sparsity=0.5), Cell("baseline", 0, "full")]
    found = {
        cell.kind
        for cell in cells
        if config.differences(config.settings_of(cell, before), config.settings_of(cell, now))
    }
    assert found == concerned


def test_weights_can_be_added_to_a_folder_that_has_kept_none(tmp_path: Path) -> None:
    before = plain(**WEIGHTS | {"weights": {}, "sparsities": [], "seeds": [0]})
    _worker.work(before, store := Store(tmp_path), wanted=lambda: True)
    dense = Cell("baseline", 0, "full")
    assert not (store.folder(dense) / "end.pt").exists()
    settings = plain(**WEIGHTS | {"seeds": [0], "sparsities": [0.5]})
    match = r"weights of full, seed 0, .* remove '.*full-seed0' to train"
    with pytest.raises(ValueError, match=match):
        experiments.run(settings, tmp_path)
    for path in store.folder(dense).glob("*.json"):
        path.unlink()  # as if it were removed
    built = experiments.build(settings)
    check_dense(store, cells_of(built), built)
    _worker.work(settings, store, wanted=lambda: True)
    assert times(tmp_path, "finished")["baseline-full-seed0"] == 2
    assert len(store.status(cells_of(built)).finished) == 3


def test_every_file_is_written(done: tuple[dict[str, Any], Store]) -> None:
    settings, store = done
    built = experiments.build(settings)
    cells = cells_of(built)
    tables = write_tables(rows_of(store, cells), built.name, store.out)
    console = Console(file=io.StringIO(), width=300)
    written = summarise(built, store, cells, tables, console)
    files = {str(path.relative_to(store.out)) for path in written}
    pages = {"report/sparsity0.5/index.html", "report/sparsity0.9/index.html"}
    assert pages | {"sparsities.png"} <= files
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


def test_an_undefined_alpha_is_left_out(tmp_path: Path) -> None:
    """A dense model without differences between classes has none that could grow."""
    changes = {"sparsities": [0.5], "seeds": [0], "weights": {"magnitude": {}}}
    settings = plain(**WEIGHTS | changes)
    _worker.work(settings, store := Store(tmp_path), wanted=iter([True, False]).__next__)
    path = store.folder(Cell("baseline", 0, "full")) / "result.json"
    equal = read_result(path.parent) | {"recall": [0.5] * 4}
    write_json(path, "ExperimentResult", equal)
    _worker.work(settings, store, wanted=lambda: True)
    found = result(store, Cell("weights", 0, "magnitude", sparsity=0.5))
    assert found["alpha"] is None
    assert math.isfinite(found["average"])
