"""The command line: `fairprune experiment CONFIG`."""

from __future__ import annotations

import copy
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from jsonargparse import ArgumentParser
from rich.console import Console

from lightning_fairprune.experiments import _config
from lightning_fairprune.experiments._cells import Cell, blocked, cells_of
from lightning_fairprune.experiments._pool import run_all
from lightning_fairprune.experiments._records import Experiment
from lightning_fairprune.experiments._results import rows_of, write_tables
from lightning_fairprune.experiments._store import Status, Store
from lightning_fairprune.experiments._summary import summarise
from lightning_fairprune.experiments._weights import check_dense

# Prints the names of cells and files unchanged.
_PLAIN: Any = {"highlight": False, "markup": False, "soft_wrap": True}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs an experiment, or the rest of it.

    Args:
        argv: arguments after ``fairprune experiment``; those of the process by default.

    Returns:
        0 if all cells are finished, 1 if not, 130 after an interrupt.

    Raises:
        SystemExit: With status 2 and one sentence, if a setting is wrong.
    """
    parser = _parser()
    arguments = list(sys.argv[1:] if argv is None else argv)
    here = os.getcwd()
    if here not in sys.path:  # a console script does not import from the working directory
        sys.path.insert(0, here)
    if not arguments:
        parser.error(f"there must be a config, got none: {_config.ASKED}.")
    if not arguments[0].startswith("-"):
        try:
            arguments[:1] = ["--config", str(_config.find(arguments[0]))]
        except FileNotFoundError as error:
            parser.error(str(error))
    given = parser.parse_args(arguments)
    console = Console(**_PLAIN)
    settings = _config.plain(given)
    try:
        experiment = _config.build(settings)
        out = Path(given.out or Path("runs") / experiment.name)
        if given.dry_run:
            _list(cells_of(experiment), experiment, out, console)
            return 0
        return run(settings, out, given.jobs, given.threads, console)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        console.print("Stopped. Run the same command to continue.")
        return 130


def run(
    settings: Mapping[str, Any],
    out: str | os.PathLike[str],
    jobs: int = 1,
    threads: int | None = None,
    console: Console | None = None,
) -> int:
    """Runs all cells of an experiment that are not finished and writes its tables.

    Args:
        settings: content of a config, as nested dictionaries; defaults are filled in.
        out: folder; finished cells in it are kept.
        jobs: processes that train at the same time.
        threads: of torch in each; None divides the processors.
        console: for progress; None shows nothing.

    Returns:
        0 if all cells are finished, else 1.

    Raises:
        ValueError: If a setting is wrong, or finished cells have other settings.
    """
    for name, value in (("jobs", jobs), ("threads", threads)):
        if value is not None and value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}.")
    console = console or Console(quiet=True)
    settings = _config.plain(_config.parser().parse_object(copy.deepcopy(dict(settings))))
    experiment = _config.build(settings)
    cells, store = cells_of(experiment), Store(out)
    store.check(cells, settings)
    check_dense(store, cells, experiment)
    threads = threads or max(1, (os.cpu_count() or 1) // jobs)

    def write() -> list[Path]:
        return write_tables(rows_of(store, cells), experiment.name, store.out)

    status = run_all(settings, store, jobs, threads, console, write)
    summarise(experiment, store, cells, write(), console)
    _say_what_failed(cells, experiment, store, status, console)
    return 0 if len(status.finished) == len(cells) else 1


def _say_what_failed(
    cells: Sequence[Cell], experiment: Experiment, store: Store, status: Status, console: Console
) -> None:
    for cell in cells:
        if cell.key in status.failed:
            last = (store.error(cell) or "").strip().rpartition("\n")[2]
            where = store.folder(cell) / "error.txt"
            console.print(f"Failed: {cell.label}: {last} ({where})")
    left = blocked(cells, experiment, status.failed)
    if left:
        causes = Counter(left.values())
        text = ", ".join(f"{count} for {key}" for key, count in causes.items())
        console.print(f"Not started, because these failed: {text}.")
    rest = len(cells) - len(status.finished) - len(status.failed) - len(left)
    if rest:
        logs = store.out / "logs"
        console.print(f"{rest} cells are not done, because all processes have ended: see {logs}.")


def _list(cells: Sequence[Cell], experiment: Experiment, out: Path, console: Console) -> None:
    status, running = Status(frozenset(), frozenset()), {}
    if (out / "cells").is_dir():
        status, running = Store(out).status(cells), Store(out).running(cells)
    states = {"works": running, "failed": status.failed, "done": status.finished}
    for cell in cells:
        state = next((name for name, keys in states.items() if cell.key in keys), "")
        console.print(f"{state:6} {cell.key}")
    done = f"{len(status.finished)} of {len(cells)} cells"
    console.print(f"{done} of {experiment.name} are finished in {out}.")


def _parser() -> ArgumentParser:
    parser = _config.parser()
    parser.usage = "fairprune experiment CONFIG [options]"
    add = parser.add_argument
    add("--out", type=str | None, default=None, help="folder for all files (runs/NAME)")
    add("--jobs", type=int, default=1, help="trainings at the same time")
    text = "threads of each training (processors / jobs)"
    add("--threads", type=int | None, default=None, help=text)
    text = "list the cells and what is finished, train nothing"
    add("--dry_run", action="store_true", help=text)
    return parser


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns the content of a YAML file, a shipped one by its name, to change and pass to `run`.

    Example:
        >>> read_config("digits.yaml")["densities"]
        [0.5, 0.3]
    """
    found: dict[str, Any] = yaml.safe_load(_config.find(os.fspath(path)).read_text())
    return found
