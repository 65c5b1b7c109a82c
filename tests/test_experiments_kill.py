"""Experiments that are killed and started again, and several processes on one grid."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from experiment_grid import GRID, HOLD, diary, held_at, plain, results, times

from lightning_fairprune import experiments
from lightning_fairprune.experiments import _command, _pool
from lightning_fairprune.experiments._cells import cells_of
from lightning_fairprune.experiments._store import Store

# Where the tests' modules lie.
TESTS = Path(__file__).parent


def worker(settings: Mapping[str, Any], out: Path) -> subprocess.Popen[bytes]:
    """A worker without the command that starts it."""
    process = subprocess.Popen([sys.executable, "-c", _pool._BEGIN], stdin=subprocess.PIPE)
    task = {"settings": settings, "out": str(out), "threads": 1, "path": sys.path}
    assert process.stdin is not None
    with process.stdin as pipe:
        pipe.write(json.dumps(task).encode())
    return process


def command(config: Path, out: Path, *more: str) -> subprocess.Popen[bytes]:
    """The whole command, in a group of its own with its workers."""
    call = [sys.executable, "-m", "lightning_fairprune.cli", "experiment", str(config)]
    root = str(TESTS.parent)
    return subprocess.Popen(
        [*call, "--out", str(out), *more],
        cwd=TESTS,
        env=os.environ | {"PYTHONPATH": root, "PYTHONWARNINGS": "ignore"},
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )


def wait_until_held(process: subprocess.Popen[bytes]) -> None:
    """Waits until a process is in the middle of a cell, where it stays."""
    path = held_at(**json.loads(os.environ[HOLD]))
    while not path.exists():
        assert process.poll() is None, "it ended by itself"
        time.sleep(0.02)


@pytest.fixture(autouse=True)
def _only_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures and pages take longer than the trainings, and have tests of their own."""
    monkeypatch.setattr(_command, "summarise", lambda *_: [])


def test_killed_three_times_it_ends_with_the_same_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = {"densities": [0.3], "model": {"class_path": "experiment_grid.Held"}}
    settings, out = plain(**held), tmp_path / "killed"
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(GRID | held))

    def hold(folder: Path, **where: Any) -> None:
        monkeypatch.setenv(HOLD, json.dumps({"out": str(folder)} | where))

    # The whole command with two jobs, while a query model trains.
    hold(out, kind="query", count=1)
    whole = command(config, out, "--jobs", "2")
    wait_until_held(whole)
    os.killpg(whole.pid, signal.SIGKILL)
    whole.wait()
    # The command politely, which then takes its worker with it.
    hold(out, kind="query", count=2)
    whole = command(config, out)
    wait_until_held(whole)
    whole.terminate()
    assert whole.wait() == 130
    last = diary(out)[-1]
    assert last["what"] == "begun"
    assert Store(out).running(cells_of(experiments.build(settings))) == {}
    # Then workers: in a final model, and in a one-fit.
    for kind, count in (("final", 4), ("one_fit", 2)):
        hold(out, kind=kind, count=count)
        process = worker(settings, out)
        wait_until_held(process)
        process.kill()
        process.wait()
    monkeypatch.delenv(HOLD)
    before = times(out, "finished")
    cells = [cell.key for cell in cells_of(experiments.build(settings))]
    assert 0 < len(before) < len(cells)

    assert experiments.run(settings, out, jobs=1, threads=1) == 0
    hold(tmp_path / "once", workers=2)
    assert experiments.run(settings, tmp_path / "once", jobs=2, threads=1) == 0
    assert results(out) == results(tmp_path / "once")
    assert len(results(out)) == 2 * (1 + 4)

    # No cell was finished twice, and none was begun after it was finished.
    assert set(times(out, "finished").values()) == {1}
    assert sorted(times(out, "finished")) == sorted(cells)
    done: set[str] = set()
    for line in diary(out):
        assert line["cell"] not in done
        done |= {line["cell"]} if line["what"] == "finished" else set()
    assert sum(times(out, "begun").values()) <= len(cells) + 5

    # Without a kill every cell was begun once, by either of two processes.
    once = tmp_path / "once"
    assert times(once, "begun") == times(once, "finished") == dict.fromkeys(cells, 1)
    assert len({line["pid"] for line in diary(once)}) == 2

    # Once more there is nothing to do, and nothing is done.
    lines = diary(out)
    assert experiments.run(settings, out, jobs=1, threads=1) == 0
    assert diary(out) == lines


def test_a_cell_that_ends_its_process_is_reported_and_the_others_are_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ends.py").write_text(
        "import os\ndef quota(sizes, budget):\n    os.kill(os.getpid(), 9)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    methods = {"ends": {"quota": "ends.quota"}, "random": {}}
    content = GRID | {"methods": methods, "one_fit": {}, "densities": [0.5], "seeds": [0]}
    (tmp_path / "ends.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.chdir(tmp_path)
    assert experiments.main(["ends.yaml", "--threads", "1"]) == 1
    text = capsys.readouterr().out
    assert "3/4 random, density 0.5, seed 0: average" in text
    assert (
        "Failed: ends, density 0.5, seed 0: The process that worked on it was ended by signal 9"
        in text
    )
    assert len(results(tmp_path / "runs" / "tiny")) == 2
