"""Runs cells in several processes and shows their progress."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from lightning_fairprune.experiments._cells import Cell, cells_of
from lightning_fairprune.experiments._config import build
from lightning_fairprune.experiments._store import Status, Store

_SECONDS_BETWEEN_LOOKS = 0.5
# A worker imports from the same path as the command.
_BEGIN = """
import json, sys
task = json.load(sys.stdin)
sys.path[:] = task["path"]
from lightning_fairprune.experiments._worker import main
main(task)
"""


def run_all(
    settings: Mapping[str, Any],
    store: Store,
    jobs: int,
    threads: int,
    console: Console,
    on_finished: Callable[[], object],
) -> Status:
    """Runs all cells in `jobs` processes and calls `on_finished` after those of the table."""
    experiment = build(settings)
    cells = cells_of(experiment)
    store.forget_failures(cells)
    task = {
        "settings": dict(settings),
        "out": str(store.out.resolve()),
        "threads": threads,
        "path": [path or os.getcwd() for path in sys.path],
    }
    todo = len(cells) - len(store.status(cells).finished)
    if todo:
        with console.status("Preparing the data"):
            experiment.data().prepare_data()  # once for all processes
    workers = {i: _start(task, store, i) for i in range(min(jobs, todo))}
    view = _View(cells, store, jobs, console)
    try:
        with _stoppable(), view:
            while workers:
                time.sleep(_SECONDS_BETWEEN_LOOKS)
                for i, worker in list(workers.items()):
                    if worker.poll() is None:
                        continue
                    del workers[i]
                    if worker.returncode:
                        _bury(worker, store, cells, i)
                        # A process that started no cell would end at once again.
                        if store.has_begun(worker.pid):
                            workers[i] = _start(task, store, i)
                if view.update():
                    on_finished()
    finally:
        for worker in workers.values():
            worker.kill()
        for worker in workers.values():
            worker.wait()
    return store.status(cells)


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Makes `kill` stop the workers too, as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _start(task: Mapping[str, Any], store: Store, number: int) -> subprocess.Popen[bytes]:
    threads = str(task["threads"])
    environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    environment |= _device(number)
    with _log(store, number).open("ab") as log:
        command = [sys.executable, "-c", _BEGIN]
        worker = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment
        )
    assert worker.stdin is not None
    with contextlib.suppress(BrokenPipeError), worker.stdin as pipe:  # the process may have ended
        pipe.write(json.dumps(task).encode())
    return worker


def _log(store: Store, number: int) -> Path:
    return store.out / "logs" / f"worker-{number}.log"


def _device(number: int) -> dict[str, str]:
    """Assigns each process a GPU, if there are several and the user has not chosen."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return {}
    import torch

    count = torch.cuda.device_count()
    return {"CUDA_VISIBLE_DEVICES": str(number % count)} if count > 1 else {}


def _bury(
    worker: subprocess.Popen[bytes], store: Store, cells: Sequence[Cell], number: int
) -> None:
    """Marks the cells of a dead process as failed."""
    code = worker.returncode
    how = f"was ended by signal {-code}" if code < 0 else f"ended with status {code}"
    for cell in store.abandoned(cells, worker.pid):
        store.fail(cell, f"The process that worked on it {how}; see {_log(store, number)}.\n")


def seconds_left(
    cells: Sequence[Cell], seconds: Mapping[str, float], elapsed: Mapping[str, float], jobs: int
) -> float | None:
    """Returns the time until all cells are finished; None before the first one is.

    A cell takes as long as the mean of its kind, or of all if none of its kind is finished. `seconds`
    are those of finished cells by key, `elapsed` those of running ones.

    Example:
        >>> cells = [Cell("query", 0), Cell("final", 0, "a", 0.5), Cell("final", 0, "b", 0.5)]
        >>> seconds_left(cells, {"query-seed0-model0": 10.0}, {"final-a-density0.5-seed0": 4.0}, 2)
        8.0
    """
    if not seconds:
        return None
    of_kind: dict[str, list[float]] = {}
    for cell in cells:
        if cell.key in seconds:
            of_kind.setdefault(cell.kind, []).append(seconds[cell.key])
    means = {kind: fmean(found) for kind, found in of_kind.items()}
    mean = fmean(seconds.values())
    todo = [
        max(0.0, means.get(cell.kind, mean) - elapsed.get(cell.key, 0.0))
        for cell in cells
        if cell.key not in seconds
    ]
    return sum(todo) / max(1, min(jobs, len(todo)))


class _View:
    """Shows progress: a bar on a terminal, and a line for each cell that ended."""

    def __init__(self, cells: Sequence[Cell], store: Store, jobs: int, console: Console) -> None:
        self.cells = {cell.key: cell for cell in cells}
        self.store, self.jobs, self.console = store, jobs, console
        self.results: dict[str, dict[str, Any]] = {}
        self.failed: set[str] = set()
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self.task = self.bar.add_task("", total=len(cells), left="")

    def __enter__(self) -> _View:
        self.bar.start()
        self._read(self._status())
        self.bar.update(self.task, completed=len(self.results))
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def update(self) -> bool:
        """Shows the cells that have ended, and returns whether any is one of the table."""
        status, running = self._status(), self.store.running([*self.cells.values()])
        new = self._read(status)
        failed = [key for key in status.failed if key not in self.failed]
        self.failed |= status.failed
        left = self._left(running)
        texts = [self._result(key) for key in new]
        texts += [f"{self.cells[key].label}: failed" for key in failed]
        for text in texts:
            done = f"{len(self.results)}/{len(self.cells)}"
            self.console.print(f"{done} {text}{left and f'; {left}'}")
        ended = len(status.finished) + len(status.failed)
        labels = "; ".join(self.cells[key].label for key in running)
        self.bar.update(
            self.task,
            completed=len(self.results) + len(self.failed),
            description=labels or ("starting" if ended < len(self.cells) else "done"),
            left=left,
        )
        return any(self.cells[key].in_table for key in new)

    def _status(self) -> Status:
        return self.store.status([*self.cells.values()])

    def _read(self, status: Status) -> list[str]:
        new = [key for key in self.cells if key in status.finished and key not in self.results]
        for key in new:
            self.results[key] = self.store.result(self.cells[key]) or {}
        return new

    def _result(self, key: str) -> str:
        result, found = self.results[key], ""
        if "worst" in result:
            found = f"average {result['average']:.3f}, worst {result['worst']:.3f}, "
        if result.get("alpha") is not None:
            found += f"alpha {result['alpha']:.3f}, "
        return f"{self.cells[key].label}: {found}{result['seconds']:.0f} s"

    def _left(self, running: Mapping[str, float]) -> str:
        now = time.time()
        elapsed = {key: now - since for key, since in running.items()}
        seconds = {key: result["seconds"] for key, result in self.results.items()}
        todo = [cell for key, cell in self.cells.items() if key not in self.failed]
        left = seconds_left(todo, seconds, elapsed, self.jobs)
        return "" if left is None else f"about {_span(left)} left"


def _span(seconds: float) -> str:
    """Returns a time as text.

    Example:
        >>> _span(40), _span(200), _span(5000)
        ('40 s', '4 min', '1 h 24 min')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = -(-int(seconds) // 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
