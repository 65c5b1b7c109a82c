"""A process that takes one cell after the other until nothing is left to do."""

from __future__ import annotations

import logging
import os
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import lightning.pytorch as pl
import torch

from lightning_fairprune.experiments._cells import Cell, blocked, cells_of, needs, ready
from lightning_fairprune.experiments._config import build, settings_of
from lightning_fairprune.experiments._model import run_baseline, run_final, run_one_fit
from lightning_fairprune.experiments._query import known, run_query, run_score
from lightning_fairprune.experiments._store import Store
from lightning_fairprune.experiments._weights import run_weights

_SECONDS_BETWEEN_LOOKS = 0.5


def work(settings: Mapping[str, Any], store: Store, wanted: Callable[[], bool]) -> None:
    """Does cells until all have ended, here or elsewhere; `wanted` is asked before each whether to start it."""
    experiment = build(settings)
    cells = cells_of(experiment)
    while wanted():
        status = store.status(cells)
        closed = status.finished | status.failed
        open_ready = ready(cells, experiment, status.finished, status.failed)
        cell = next((cell for cell in open_ready if store.take(cell)), None)
        if cell is not None:
            attempt(cell, settings, store)
            continue
        if len(closed) + len(blocked(cells, experiment, status.failed)) == len(cells):
            return
        time.sleep(_SECONDS_BETWEEN_LOOKS)


def attempt(cell: Cell, settings: Mapping[str, Any], store: Store) -> None:
    """Does one cell that this process has taken; what it raises ends in its folder."""
    start = time.perf_counter()
    try:
        found = run_cell(cell, settings, store)
    except Exception:
        store.fail(cell, traceback.format_exc())
        return
    about: dict[str, Any] = {"cell": cell.key, "kind": cell.kind, "method": cell.name}
    about |= {"density": cell.density, "sparsity": cell.sparsity, "seed": cell.seed}
    about["seconds"] = round(time.perf_counter() - start, 3)
    store.finish(cell, about | found | {"settings": settings_of(cell, settings)})


def run_cell(cell: Cell, settings: Mapping[str, Any], store: Store) -> dict[str, Any]:
    """Does the work of one cell in its folder and returns its result."""
    seed = seed_of(cell)
    pl.seed_everything(seed, workers=True, verbose=False)
    # Anew for every cell: networks and quotas with a memory inside are its own.
    experiment = build(settings)
    folder = store.folder(cell)
    if cell.kind == "query":
        return run_query(cell, experiment, folder, seed)
    before = needs(cell, experiment)
    queries = [store.folder(need) for need in before if need.kind == "query"]
    passes = [store.folder(need) for need in before if need.kind == "score"]
    if cell.kind == "score":
        return run_score(cell, experiment, folder, queries[0])
    if cell.kind in ("baseline", "one_fit"):
        run = run_baseline if cell.kind == "baseline" else run_one_fit
        return run(cell, experiment, folder, seed)
    if cell.kind == "weights":
        return run_weights(cell, experiment, folder, seed, store.folder(before[0]))
    told = known(experiment.methods[cell.name], experiment, queries, passes)
    return run_final(cell, experiment, folder, seed, told)


def seed_of(cell: Cell) -> int:
    """Returns the seed of a cell: one for all models of the table, so that they begin alike.

    Example:
        >>> seed_of(Cell("final", 2, "random", 0.3)), seed_of(Cell("query", 2, member=1))
        (2, 1000201)
    """
    if cell.in_table:
        return cell.seed
    return 1_000_000 + 100 * cell.seed + cell.member


def main(task: Mapping[str, Any]) -> None:
    """Does what the process was started for, with the settings, folder and threads of `task`."""
    # Ctrl-C goes to the whole group. The command ends its workers; a Trainer would end its fit as if done.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(task["threads"])
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated.*")
    parent = os.getppid()
    # The workers of a command that was killed end after their cell: nothing shows what they do.
    work(task["settings"], Store(task["out"]), wanted=lambda: os.getppid() == parent)
