"""The folder of an experiment: who works on which cell, what is finished, what failed."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import socket
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from filelock import FileLock, Timeout

from lightning_fairprune._files import json_text, read_json, understanding, write_whole
from lightning_fairprune.experiments._cells import Cell
from lightning_fairprune.experiments._config import differences, settings_of

RESULT, ERROR = "result.json", "error.txt"
_KIND = "ExperimentResult"


def read_result(folder: Path) -> dict[str, Any]:
    """Returns what `Store.finish` wrote into the folder of a cell.

    Raises:
        FileNotFoundError: If the cell is not finished.
        ValueError: If the file is damaged.
    """
    path = folder / RESULT
    with understanding(path):
        content = json.loads(path.read_text(encoding="utf-8"))
        old = "settings" in content and not content.keys() & {"format", "version", "checksum"}
    if old:  # before results had a version; each of them would say so
        _warn_of_old_results()
        return dict(content)
    content = read_json(path, _KIND)
    return {k: v for k, v in content.items() if k not in ("format", "version")}


@functools.cache
def _warn_of_old_results() -> None:
    warnings.warn(
        "results of an earlier release have no checksum, so damage would not be noticed.",
        stacklevel=4,
    )


@dataclass(frozen=True, slots=True)
class Status:
    """How far the cells are, by their keys."""

    finished: frozenset[str]
    failed: frozenset[str]  # in the current attempt


class Store:
    """Reads and writes the folder, which is made if it is not there."""

    def __init__(self, out: str | os.PathLike[str]) -> None:
        self.out = Path(out)
        self._held: dict[str, FileLock] = {}
        for name in ("cells", "locks", "logs"):
            (self.out / name).mkdir(parents=True, exist_ok=True)

    def folder(self, cell: Cell) -> Path:
        return self.out / "cells" / cell.key

    def result(self, cell: Cell) -> dict[str, Any] | None:
        """Returns the result of a cell, None if it is not finished."""
        try:
            return read_result(self.folder(cell))
        except FileNotFoundError:
            return None

    def error(self, cell: Cell) -> str | None:
        """Returns why a cell failed, None if it did not."""
        try:
            return (self.folder(cell) / ERROR).read_text()
        except FileNotFoundError:
            return None

    def status(self, cells: Sequence[Cell]) -> Status:
        finished = {cell.key for cell in cells if (self.folder(cell) / RESULT).exists()}
        failed = {cell.key for cell in cells if (self.folder(cell) / ERROR).exists()}
        return Status(frozenset(finished), frozenset(failed - finished))

    def running(self, cells: Sequence[Cell]) -> dict[str, float]:
        """Returns when the running cells were started, by key, in seconds since 1970."""
        return {
            cell.key: line["time"]
            for cell, line in self._last(cells)
            if line["what"] == "begun" and self._is_held(cell)
        }

    def take(self, cell: Cell) -> bool:
        """Starts a cell, unless another process has started or finished it."""
        lock = FileLock(self._lock(cell))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return False
        folder = self.folder(cell)
        # It may have ended between the look at its state and the lock.
        if (folder / RESULT).exists() or (folder / ERROR).exists():
            lock.release()
            return False
        shutil.rmtree(folder, ignore_errors=True)  # what one that was stopped left behind
        folder.mkdir(parents=True)
        self._held[cell.key] = lock
        self._note(cell, "begun")
        return True

    def finish(self, cell: Cell, result: Mapping[str, Any]) -> None:
        """Writes the result, whole or not at all, and releases the cell."""
        self._end(cell, RESULT, json_text(_KIND, result), "finished")

    def fail(self, cell: Cell, error: str) -> None:
        """Writes why a cell failed, and releases it."""
        self._end(cell, ERROR, error, "failed")

    def _end(self, cell: Cell, name: str, text: str, what: str) -> None:
        self.folder(cell).mkdir(parents=True, exist_ok=True)
        write_whole(self.folder(cell) / name, lambda path: path.write_text(text))
        self._note(cell, what)
        if cell.key in self._held:
            self._held.pop(cell.key).release()

    def forget_failures(self, cells: Sequence[Cell]) -> None:
        for cell in cells:
            (self.folder(cell) / ERROR).unlink(missing_ok=True)

    def abandoned(self, cells: Sequence[Cell], pid: int) -> list[Cell]:
        """Returns the cells that a process of this host had started and not ended when it died."""
        return [
            cell
            for cell, line in self._last(cells)
            if line["what"] == "begun"
            and (line["host"], line["pid"]) == (socket.gethostname(), pid)
            and not (self.folder(cell) / RESULT).exists()
        ]

    def has_begun(self, pid: int) -> bool:
        """Whether a process of this host has started any cell."""
        who = (socket.gethostname(), pid)
        return any((line["host"], line["pid"]) == who for line in self._diary())

    def check(self, cells: Sequence[Cell], settings: Mapping[str, Any]) -> None:
        """Refuses settings that finished cells were not made with, and keeps those that are new.

        Raises:
            ValueError: If a finished cell would come out otherwise.
        """
        for cell in cells:
            result = self.result(cell)
            if result is None:
                continue
            changed = differences(result["settings"], settings_of(cell, settings))
            if changed:
                raise ValueError(
                    f"{str(self.out)!r} holds results of other settings: {'; '.join(changed)} "
                    f"(finished: {cell.label}). Give another `--out`, or go back to these settings; "
                    "densities, seeds and methods may be added."
                )
        text = yaml.safe_dump(dict(settings), sort_keys=False)
        write_whole(self.out / "config.yaml", lambda path: path.write_text(text))

    def _lock(self, cell: Cell) -> Path:
        return self.out / "locks" / f"{cell.key}.lock"

    def _is_held(self, cell: Cell) -> bool:
        """Whether a process, on whatever host, has the cell: its lock ends with it."""
        try:
            with FileLock(self._lock(cell), timeout=0):
                return False
        except Timeout:
            return True

    def _note(self, cell: Cell, what: str) -> None:
        """Adds a line to the diary; one write in append mode, so that processes can share it."""
        line = {"cell": cell.key, "what": what, "host": socket.gethostname(), "pid": os.getpid()}
        text = json.dumps(line | {"time": round(time.time(), 3)}) + "\n"
        with (self.out / "diary.jsonl").open("ab", buffering=0) as file:
            file.write(text.encode())

    def _diary(self) -> Iterator[dict[str, Any]]:
        diary = self.out / "diary.jsonl"
        for line in diary.read_text().splitlines() if diary.exists() else []:
            with contextlib.suppress(json.JSONDecodeError):  # two hosts may write at one place
                yield json.loads(line)

    def _last(self, cells: Sequence[Cell]) -> list[tuple[Cell, dict[str, Any]]]:
        """Returns what the diary says last of each cell that it knows."""
        last = {line["cell"]: line for line in self._diary()}
        return [(cell, last[cell.key]) for cell in cells if cell.key in last]
