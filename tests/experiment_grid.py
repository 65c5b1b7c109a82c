"""A grid of tiny trainings for the tests of experiments, and how its results are compared."""

from __future__ import annotations

import copy
import csv
import json
import os
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import users

from lightning_fairprune.experiments import _config as config

BY_TIME = {"seconds", "select_seconds", "query_seconds"}
EL2N = {
    "score": "lightning_fairprune.scores.el2n",
    "keep": "hard",
    "score_on": "pass",
    "at": "early",
}
GRID: dict[str, Any] = {
    "name": "tiny",
    "data": {"class_path": "users.Data"},
    "model": {"class_path": "users.Model"},
    "query": {"epochs": 2, "early": 0.5, "shrinkage": 5.0},
    "final": {"epochs": 2},
    "densities": [0.5, 0.3],
    "seeds": [0, 1],
    "methods": {
        "random": {},
        "el2n": EL2N,
        "random+drop": {"quota": "lightning_fairprune.quotas.drop"},
    },
    "one_fit": {"flagship": {}},
    "baselines": {"full": {}},
    "trainer": {"accelerator": "cpu"},
}


def plain(**changes: Any) -> dict[str, Any]:
    """The settings of the grid with all defaults."""
    return config.plain(config.parser().parse_object(copy.deepcopy(GRID | changes)))


def results(out: Path) -> list[dict[str, str]]:
    """The lines of the table, without times."""
    with (out / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{key: value for key, value in row.items() if key not in BY_TIME} for row in rows]


def diary(out: Path) -> list[dict[str, Any]]:
    """What happened, in order."""
    path = out / "diary.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def times(out: Path, what: str) -> Counter[str]:
    """How often something happened to each cell."""
    return Counter(line["cell"] for line in diary(out) if line["what"] == what)


def begun(out: Path, kind: str) -> int:
    """How many cells of a kind have been begun."""
    return sum(key.startswith(kind) for key in times(out, "begun"))


HOLD = "TEST_HOLD"  # the variable that says where `Held` stops


def held_at(out: str, kind: str, count: int) -> Path:
    """The file that says that a process is held there."""
    return Path(out, f"held.{kind}.{count}")


class Held(users.Model):
    """Stops in the middle of its training where a test says so, as ``{"out": folder, **where}``.

    ``{"kind": kind, "count": n}``: until the process is killed, once n cells of the kind have been begun.
    ``{"workers": n}``: until n processes have begun a cell.
    """

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 0 or HOLD not in os.environ:
            return
        where = json.loads(os.environ[HOLD])
        out = Path(where["out"])
        while len({line["pid"] for line in diary(out)}) < where.get("workers", 0):
            time.sleep(0.02)
        if "kind" in where and begun(out, where["kind"]) >= where["count"]:
            held_at(**where).touch()
            signal.alarm(600)  # it does not outlive a test that fails
            signal.pause()


def pruned_by(criterion: str, **more: Any) -> dict[str, Any]:
    given = {"criterion": f"lightning_fairprune.criteria.{criterion}", **more}
    return {"prune": {"class_path": "WeightPruning", "init_args": given}}


WEIGHTS: dict[str, Any] = {
    "methods": {},
    "one_fit": {},
    "densities": [],
    "seeds": [0, 1],
    "sparsities": [0.5, 0.9],
    "weights": {"magnitude": {}, "undecayed": pruned_by("undecayed", num_batches=2)},
    "finetune": {"epochs": 2, "lr_factor": 0.5},
}
