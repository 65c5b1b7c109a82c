"""Experiments in one process: what each cell leaves, failures, changed settings, the command line."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import users
import yaml
from experiment_grid import EL2N, GRID, plain, times
from rich.console import Console

import lightning_fairprune as lfp
from lightning_fairprune import cli, experiments
from lightning_fairprune.experiments import _config as config
from lightning_fairprune.experiments import _pool, _worker
from lightning_fairprune.experiments._cells import Cell, cells_of
from lightning_fairprune.experiments._claim import markdown as claims_markdown
from lightning_fairprune.experiments._query import known
from lightning_fairprune.experiments._results import Row, by_density, markdown, rows_of, spread
from lightning_fairprune.experiments._store import Store
from lightning_fairprune.experiments._summary import summarise

MODULE = """
from torch import nn
from users import Data, Model

class Weighted(Model):
    def __init__(self):
        super().__init__()
        self.criterion = nn.CrossEntropyLoss()

    def training_step(self, batch, batch_idx):
        return self.criterion(self(batch[0]), batch[1])

def no_quota(sizes, budget):
    raise RuntimeError("this quota never works")

class Grouped(Data):
    class_names = ("a", "b", "c", "d")
    group_names = ("even", "odd")

class Labelled(Data):
    def setup(self, stage):
        super().setup(stage)
        self.train.targets = self.train.y

class Absent(Data):
    def prepare_data(self):
        raise FileNotFoundError("Absent: put the data there.")

def parity(batch):
    return batch[1] % 2
"""


def go(settings: dict[str, Any], out: Path) -> Store:
    """Does all cells in this process."""
    store = Store(out)
    _worker.work(settings, store, wanted=lambda: True)
    return store


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Store]:
    """A finished grid; with two query models, so that something is averaged."""
    settings = plain(
        query={"epochs": 2, "early": 0.5, "models": 2},
        methods={
            "random": {},
            "el2n": EL2N,
            "random+drop": {"quota": "lightning_fairprune.quotas.drop"},
            "forgetting": {"score": "lightning_fairprune.scores.forgetting", "keep": "hard"},
            "grand": {
                "score": "lightning_fairprune.gradients.grad_norm",
                "keep": "hard",
                "score_on": "pass",
            },
        },
        densities=[0.3],
        seeds=[0],
    )
    return settings, go(settings, tmp_path_factory.mktemp("done"))


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user's."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "mine.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path / "code")
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return "mine"


def test_every_cell_has_a_whole_result(done: tuple[dict[str, Any], Store]) -> None:
    settings, store = done
    cells = cells_of(experiments.build(settings))
    assert store.status(cells).finished == {cell.key for cell in cells}
    assert set(times(store.out, "finished").values()) == {1}
    assert store.running(cells) == {}


def test_the_rows_hold_what_was_asked_for(done: tuple[dict[str, Any], Store]) -> None:
    settings, store = done
    rows = rows_of(store, cells_of(experiments.build(settings)))
    names = ["full", "random", "el2n", "random+drop", "forgetting", "grand", "flagship"]
    assert [row.method for row in rows] == names
    for row in rows[1:]:
        assert sum(row.kept) == round(0.3 * 103)
    for row in rows:
        recall = torch.tensor([value for value in row.recall if value is not None])
        assert row.average == pytest.approx(recall.mean().item())
        assert row.worst == pytest.approx(recall.min().item())
        assert row.gap == pytest.approx((recall.max() - recall.min()).item())
        assert row.std == pytest.approx(recall.std(correction=0).item())
        assert 206 <= row.samples_seen < 206 + 2 * 10
    assert rows[0].samples_seen == 206
    assert rows[0].steps == 2 * 11


def test_recalls_and_scores_are_means_over_query_models(done: tuple[dict[str, Any], Store]) -> None:
    settings, store = done
    built = experiments.build(settings)
    queries = [store.folder(Cell("query", 0, member=m)) for m in (0, 1)]
    passes = [store.folder(Cell("score", 0, "el2n", member=m, at="early")) for m in (0, 1)]
    told = known(built.methods["el2n"], built, queries, passes)
    facts = [json.loads((folder / "result.json").read_text()) for folder in queries]
    recall = [torch.tensor(f["tp"]) / torch.tensor(f["support"]) for f in facts]
    torch.testing.assert_close(told.recall.float(), torch.stack(recall).mean(0))
    forgetting = known(built.methods["forgetting"], built, queries, [])
    saved = [lfp.Dynamics.load(folder / "dynamics.safetensors") for folder in queries]
    each = torch.stack([lfp.scores.forgetting(dynamics).float() for dynamics in saved])
    torch.testing.assert_close(forgetting.score, each.mean(0))


def test_a_pass_scores_the_weights_of_its_moment(done: tuple[dict[str, Any], Store]) -> None:
    settings, store = done
    built = experiments.build(settings)
    data, model = built.data(), built.model()
    data.setup("fit")
    folder = store.folder(Cell("query", 0))
    for cell, weights, score in (
        (Cell("score", 0, "el2n", at="early"), "early.pt", lfp.scores.el2n),
        (Cell("score", 0, "grad_norm", at="end"), "end.pt", lfp.gradients.grad_norm),
    ):
        expected = lfp.score_pass(
            model, data.train_dataloader(), score, checkpoints=[folder / weights], progress=False
        )
        method = "el2n" if cell.name == "el2n" else "grand"
        found = known(built.methods[method], built, [folder], [store.folder(cell)]).score
        torch.testing.assert_close(found, expected)


def test_the_subset_is_that_of_select(done: tuple[dict[str, Any], Store]) -> None:
    settings, store = done
    built = experiments.build(settings)
    queries = [store.folder(Cell("query", 0, member=m)) for m in (0, 1)]
    told = known(built.methods["random+drop"], built, queries, [])
    quota = lfp.quotas.drop(torch.bincount(told.target), told.recall, round(0.3 * 103))
    expected = lfp.select(told.target, quota, seed=0)
    folder = store.folder(Cell("final", 0, "random+drop", 0.3))
    record = lfp.PruningRecord.load(folder / "run")
    assert torch.equal(record.selection.indices, expected.indices)
    assert record.settings["quota"] == "drop"
    assert record.history[0].recall is not None


def test_models_of_one_seed_begin_alike() -> None:
    seeds = {_worker.seed_of(Cell("final", 4, name, 0.5)) for name in "ab"}
    assert seeds | {_worker.seed_of(Cell("baseline", 4, "full"))} == {4}
    queries = {_worker.seed_of(Cell("query", s, member=m)) for s in range(3) for m in range(5)}
    assert len(queries) == 15


def test_everything_is_written_at_the_end(
    done: tuple[dict[str, Any], Store], tmp_path: Path, console: Any
) -> None:
    settings, store = done
    built = experiments.build(settings)
    files = summarise(built, store, cells_of(built), [], console)
    names = {file.relative_to(store.out).as_posix() for file in files}
    page = "report/density0.3/index.html"
    assert names == {"results.parquet", "claims.md", "densities.png", page}
    import pyarrow.parquet as pq

    table = pq.read_table(store.out / "results.parquet")
    assert table.num_rows == 7
    assert table["kept_0"].to_pylist()[0] is None
    assert "random+drop" in (store.out / page).read_text()


def test_what_is_not_installed_is_said(
    done: tuple[dict[str, Any], Store], console: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, store = done
    built = experiments.build(settings)
    for name in ("pyarrow", "pyarrow.parquet", "matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "matplotlib.backends.backend_agg", raising=False)
    summarise(built, store, cells_of(built), [], console)
    text = console.file.getvalue()
    assert "No results.parquet without pyarrow" in text
    assert "without matplotlib and scipy" in text


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=200)


def test_groups_in_place_of_classes(mine: str, tmp_path: Path) -> None:
    settings = plain(
        data={"class_path": "mine.Grouped"},
        group_by="mine.parity",
        densities=[0.3],
        seeds=[0],
        methods={"random+drop": {"quota": "lightning_fairprune.quotas.drop"}},
    )
    store = go(settings, tmp_path / "out")
    rows = rows_of(store, cells_of(experiments.build(settings)))
    assert [row.method for row in rows] == ["full", "random+drop", "flagship"]
    assert all(row.classes == ("even", "odd") for row in rows)
    assert [len(row.kept or ()) for row in rows] == [0, 2, 2]


def test_class_weighting_is_a_baseline(mine: str, tmp_path: Path) -> None:
    weighting = {"class_path": "ClassWeighting", "init_args": {"loss": "criterion"}}
    settings = plain(
        data={"class_path": "mine.Labelled"},
        model={"class_path": "mine.Weighted"},
        methods={},
        one_fit={},
        seeds=[0],
        baselines={"full": {}, "cdb_w": {"weighting": weighting}},
    )
    store = go(settings, tmp_path)
    full, weighted = rows_of(store, cells_of(experiments.build(settings)))
    assert (full.method, weighted.method) == ("full", "cdb_w")
    assert full.samples_seen == weighted.samples_seen == 206
    assert full.kept == weighted.kept == tuple(torch.bincount(users.Blobs().y).tolist())
    assert full.recall != weighted.recall


def test_a_failed_cell_is_kept_and_the_others_go_on(mine: str, tmp_path: Path) -> None:
    methods = {"random": {}, "broken": {"quota": "mine.no_quota"}}
    settings = plain(methods=methods, densities=[0.5], seeds=[0])
    store = go(settings, tmp_path)
    cells = cells_of(experiments.build(settings))
    status = store.status(cells)
    assert status.failed == {"final-broken-density0.5-seed0"}
    assert len(status.finished) == len(cells) - 1
    broken = next(cell for cell in cells if cell.name == "broken")
    assert "RuntimeError: this quota never works" in (store.error(broken) or "")
    # The next start tries it once more, and nothing else.
    store.forget_failures(cells)
    go(settings, tmp_path)
    begun = {cell.key: 2 if cell.name == "broken" else 1 for cell in cells}
    assert times(tmp_path, "begun") == begun


def test_what_needs_a_failed_cell_is_not_begun(tmp_path: Path) -> None:
    settings = plain(methods={"random": {}, "el2n": EL2N}, densities=[0.5], seeds=[0], one_fit={})
    store = Store(tmp_path)
    cells = cells_of(experiments.build(settings))
    query = cells[0]
    assert store.take(query)
    store.fail(query, "it was too much")
    _worker.work(settings, store, wanted=lambda: True)
    assert set(times(tmp_path, "begun")) == {"query-seed0-model0", "baseline-full-seed0"}


def test_changed_settings_are_refused_with_what_changed(done: tuple[dict[str, Any], Store]) -> None:
    settings, store = done
    cells = cells_of(experiments.build(settings))
    changed = json.loads(json.dumps(settings))
    changed["final"]["epochs"] = 3
    with pytest.raises(ValueError, match=r"final.epochs was 2 and is 3 \(finished: .*--out"):
        store.check(cells, changed)
    changed = json.loads(json.dumps(settings))
    changed["model"]["init_args"]["lr"] = 0.2
    with pytest.raises(ValueError, match=r"model.init_args.lr was 0.1 and is 0.2"):
        store.check(cells, changed)


def test_more_of_the_grid_is_fine(done: tuple[dict[str, Any], Store]) -> None:
    settings, store = done
    more = json.loads(json.dumps(settings))
    more["densities"] += [0.2]
    more["seeds"] += [5]
    more["methods"]["easy"] = more["methods"]["el2n"] | {"keep": "easy"}
    cells = cells_of(experiments.build(more))
    store.check(cells, more)
    assert yaml.safe_load((store.out / "config.yaml").read_text())["densities"] == [0.3, 0.2]
    assert len(store.status(cells).finished) == len(cells_of(experiments.build(settings)))


TAKER = """
import sys
from lightning_fairprune.experiments._cells import Cell
from lightning_fairprune.experiments._store import Store
store, cells = Store(sys.argv[1]), [Cell("query", seed) for seed in range(10)]
print("ready", flush=True)
sys.stdin.readline()
print(*[cell.seed for cell in cells if store.take(cell)], flush=True)
sys.stdin.readline()
"""


def takers(out: Path, count: int) -> list[subprocess.Popen[str]]:
    """Processes that are about to take the same cells."""
    command = [sys.executable, "-c", TAKER, str(out)]
    pipe = subprocess.PIPE
    found = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(count)]
    assert [next(lines(process)) for process in found] == ["ready\n"] * count
    return found


def lines(process: subprocess.Popen[str]) -> Iterator[str]:
    return iter(process.stdout.readline, "")


def go_on(process: subprocess.Popen[str]) -> None:
    process.stdin.write("\n")
    process.stdin.flush()


def test_of_many_processes_one_has_a_cell_until_it_dies(tmp_path: Path) -> None:
    store, cells = Store(tmp_path), [Cell("query", seed) for seed in range(10)]
    rivals = takers(tmp_path, 3)
    for rival in rivals:
        go_on(rival)
    won = [[int(seed) for seed in next(lines(rival)).split()] for rival in rivals]
    assert sorted(seed for mine in won for seed in mine) == list(range(10))
    assert store.running(cells).keys() == {cell.key for cell in cells}
    assert not any(store.take(cell) for cell in cells)
    for rival in rivals:
        rival.kill()
        rival.communicate()
    assert store.running(cells) == {}
    for rival, mine in zip(rivals, won, strict=True):
        assert [cell.seed for cell in store.abandoned(cells, rival.pid)] == mine
        assert store.has_begun(rival.pid) is bool(mine)
    assert all(store.take(cell) for cell in cells)


def test_a_lock_of_another_host_is_free_when_nothing_holds_it(tmp_path: Path) -> None:
    store, cell = Store(tmp_path), Cell("query", 0)
    (tmp_path / "locks" / f"{cell.key}.lock").write_text('{"host": "elsewhere", "pid": 1}')
    line = {"cell": cell.key, "what": "begun", "host": "elsewhere", "pid": 1, "time": 0.0}
    (tmp_path / "diary.jsonl").write_text(f"{json.dumps(line)}\n{{half a line\n")
    assert store.running([cell]) == {}
    assert store.take(cell)
    assert store.running([cell])[cell.key] > 0
    assert not Store(tmp_path).take(cell)
    store.fail(cell, "why")
    assert store.running([cell]) == {}


def test_what_a_stopped_cell_left_is_gone(tmp_path: Path) -> None:
    store, cell = Store(tmp_path), Cell("query", 0)
    store.folder(cell).mkdir()
    (store.folder(cell) / "half").touch()
    assert store.take(cell)
    assert not (store.folder(cell) / "half").exists()
    assert not store.take(cell)
    store.finish(cell, {"settings": {}})
    assert not store.take(cell)
    assert store.result(cell) == {"settings": {}}


def row(method: str, density: float, seed: int, worst: float, average: float = 0.8) -> Row:
    return Row(
        method, "final", density, seed, average, worst, 0.1, 0.1, 10, 10, 1.0, 0.5, 1.0,
        ("a", "b"), (worst, 1.0), (3, 4),
    )  # fmt: skip


def claims(rows: list[Row]) -> list[str]:
    quota = {"quota": "lightning_fairprune.quotas.drop"}
    # Known by what they do, not by their names.
    methods = {"chance": {}, "el2n": EL2N, "drop": quota, "el2n_drop": EL2N | quota}
    found = experiments.claims_of(experiments.build(plain(methods=methods)), rows)
    text = claims_markdown(found, "test")
    assert all(claim.text in text for claim in found)
    return [claim.verdict for claim in found]


def test_claims_that_hold() -> None:
    worst = {"full": 0.5, "chance": 0.4, "el2n": 0.2, "drop": 0.6, "el2n_drop": 0.5}
    rows = [
        row(name, 1.0 if name == "full" else density, seed, value + 0.01 * seed)
        for name, value in worst.items()
        for density in ((1.0,) if name == "full" else (0.5, 0.3))
        for seed in (0, 1)
    ]
    assert claims(rows) == ["holds"] * 5


def test_claims_that_do_not_or_in_part() -> None:
    rows = [
        *(row("full", 1.0, seed, 0.7) for seed in (0, 1)),
        *(row("chance", d, 0, 0.4, average=0.9) for d in (0.5, 0.3)),
        *(row("el2n", d, 0, worst) for d, worst in ((0.5, 0.3), (0.3, 0.45))),
        *(row("drop", d, 0, 0.6, average=0.84) for d in (0.5, 0.3)),
    ]
    assert claims(rows) == [
        "holds in part",  # EL2N is better than chance at density 0.3
        "holds",
        "does not hold",
        "does not hold",  # 0.84 is more than 0.05 below 0.9
        "not tested",  # no el2n_drop has been trained
    ]
    assert claims([]) == ["not tested"] * 5


def test_table_is_by_density_with_ranges() -> None:
    rows = [row("a", 0.5, 0, 0.2), row("a", 0.5, 1, 0.4), row("b", 0.3, 0, 0.25)]
    text = markdown(rows)
    assert "| a | 2 | 0.800 [0.800, 0.800] | 0.300 [0.200, 0.400] |" in text
    assert text.index("density 0.5") < text.index("density 0.3")
    assert list(by_density(rows)) == [("a", 0.5), ("b", 0.3)]
    assert spread([0.1234]) == "0.123"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(GRID, sort_keys=False))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def printed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ending:
        cli.main(["experiment", *arguments, "--print_config"])
    assert ending.value.code == 0
    return capsys.readouterr().out


def test_what_is_printed_is_read_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = ["--data.n", "77", "--query.epochs", "9", "--densities", "[0.2]"]
    first = printed(["tiny.yaml", *changes], capsys)
    content = yaml.safe_load(first)
    assert content["data"]["init_args"]["n"] == 77
    assert content["query"]["epochs"] == 9
    assert content["densities"] == [0.2]
    assert content["methods"]["el2n"]["score"] == "lightning_fairprune.scores.el2n"
    (folder / "again.yaml").write_text(first)
    assert printed(["again.yaml"], capsys) == first
    assert printed(["--config", "again.yaml"], capsys) == first


def test_dry_run_lists_what_there_is(
    folder: Path, capsys: pytest.CaptureFixture[str], done: tuple[dict[str, Any], Store]
) -> None:
    assert cli.main(["experiment", "tiny.yaml", "--dry_run"]) == 0
    text = capsys.readouterr().out
    assert "       query-seed0-model0\n" in text
    assert "0 of 22 cells of tiny are finished in runs/tiny." in text
    assert not (folder / "runs").exists()
    settings, store = done
    (folder / "done.yaml").write_text(yaml.safe_dump(settings))
    assert cli.main(["experiment", "done.yaml", "--out", str(store.out), "--dry_run"]) == 0
    text = capsys.readouterr().out
    assert "done   query-seed0-model0\n" in text
    assert f"13 of 13 cells of tiny are finished in {store.out}." in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "there must be a config, got none: give the path of a YAML file, or one of those"),
        (["tiny.yaml", "--query.early", "0"], "`query.early` must be in (0, 1]"),
        (["tiny.yaml", "--jobs", "0"], "`jobs` must be at least 1, got 0"),
        (["tiny.yaml", "--threads", "0"], "`threads` must be at least 1, got 0"),
        (["tiny.yaml", "--final.length", "long"], "final.length"),
    ],
)
def test_mistakes_are_told_in_a_sentence(
    folder: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ending:
        cli.main(["experiment", *arguments])
    assert ending.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (folder / "runs").exists()


def test_data_that_is_absent_is_said_before_any_work(
    mine: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ending:
        cli.main(["experiment", "tiny.yaml", "--data", "mine.Absent"])
    assert ending.value.code == 2
    assert "Absent: put the data there." in capsys.readouterr().err
    assert list((folder / "runs" / "tiny" / "cells").iterdir()) == []


def test_processes_that_cannot_begin_are_not_started_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_pool, "_BEGIN", "raise SystemExit(7)")
    assert cli.main(["experiment", "tiny.yaml", "--jobs", "2"]) == 1
    text = capsys.readouterr().out
    assert "22 cells are not done, because all processes have ended: see runs/tiny/logs." in text


def test_a_shipped_config_can_be_read_and_changed() -> None:
    content = experiments.read_config("digits")
    assert content["name"] == "digits"
    assert config.find("digits.yaml").is_file()
