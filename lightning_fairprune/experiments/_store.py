"""The folder of an experiment: who works on which cell, what is finished, what failed."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from lightning_fairprune._files import write_whole
from lightning_fairprune.experiments import _lock
from lightning_fairprune.experiments._cells import Cell
from lightning_fairprune.experiments._config import differences, settings_of

__all__ = ["Status", "Store"]

RESULT, ERROR = "result.json", "error.txt"


@dataclass(frozen=True, slots=True)
class Status:
    """How far the cells are, by their keys.

    Args:
        finished: with a result.
        failed: with an error, in the current attempt.
        running: with a process that works on them.
    """

    finished: frozenset[str]
    failed: frozenset[str]
    running: Mapping[str, _lock.Holder]


class Store:
    """Reads and writes the folder.

    Args:
        out: the folder; made if it is not there.
    """

    def __init__(self, out: str | os.PathLike[str]) -> None:
        self.out = Path(out)
        for name in ("cells", "locks", "logs"):
            (self.out / name).mkdir(parents=True, exist_ok=True)

    def folder(self, cell: Cell) -> Path:
        """Where a cell keeps its files."""
        return self.out / "cells" / cell.key

    def result(self, cell: Cell) -> dict[str, Any] | None:
        """Returns the result of a cell, None if it is not finished."""
        try:
            found: dict[str, Any] = json.loads((self.folder(cell) / RESULT).read_text())
        except FileNotFoundError:
            return None
        return found

    def error(self, cell: Cell) -> str | None:
        """Returns why a cell failed, None if it did not."""
        try:
            return (self.folder(cell) / ERROR).read_text()
        except FileNotFoundError:
            return None

    def status(self, cells: Sequence[Cell]) -> Status:
        """Looks at all cells."""
        finished, failed, running = set(), set(), {}
        for cell in cells:
            folder = self.folder(cell)
            if (folder / RESULT).exists():
                finished.add(cell.key)
            elif (folder / ERROR).exists():
                failed.add(cell.key)
            else:
                holder = _lock.holder_of(self._lock(cell))
                if holder is not None:
                    running[cell.key] = holder
        return Status(frozenset(finished), frozenset(failed), running)

    def take(self, cell: Cell) -> bool:
        """Begins a cell anew, unless another process has begun or finished it."""
        lock = self._lock(cell)
        if not _lock.acquire(lock):
            return False
        folder = self.folder(cell)
        # It may have ended between the look at its state and the lock.
        if (folder / RESULT).exists() or (folder / ERROR).exists():
            _lock.release(lock)
            return False
        shutil.rmtree(folder, ignore_errors=True)  # what one that was stopped left behind
        folder.mkdir(parents=True)
        self._note(cell, "begun")
        return True

    def finish(self, cell: Cell, result: Mapping[str, Any]) -> None:
        """Writes the result, whole or not at all, and lets the cell go."""
        text = json.dumps(result, indent=1)
        write_whole(self.folder(cell) / RESULT, lambda path: path.write_text(text))
        self._note(cell, "finished")
        _lock.release(self._lock(cell))

    def fail(self, cell: Cell, error: str) -> None:
        """Writes why a cell failed, and lets it go."""
        folder = self.folder(cell)
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / ERROR, lambda path: path.write_text(error))
        self._note(cell, "failed")
        _lock.release(self._lock(cell))

    def forget_failures(self, cells: Sequence[Cell]) -> None:
        """Has the cells that failed tried once more."""
        for cell in cells:
            (self.folder(cell) / ERROR).unlink(missing_ok=True)

    def abandoned(self, cells: Sequence[Cell], pid: int) -> list[Cell]:
        """Returns the unfinished cells whose lock a process of this host left behind when it died."""
        found = []
        for cell in cells:
            try:
                holder = json.loads(self._lock(cell).read_text())
            except (FileNotFoundError, json.JSONDecodeError):
                continue
            ours = (holder["host"], holder["pid"]) == (socket.gethostname(), pid)
            if ours and not (self.folder(cell) / RESULT).exists():
                found.append(cell)
        return found

    def has_begun(self, pid: int) -> bool:
        """Whether a process of this host has begun any cell."""
        diary = self.out / "diary.jsonl"
        lines = diary.read_text().splitlines() if diary.exists() else []
        who = (socket.gethostname(), pid)
        return any((line["host"], line["pid"]) == who for line in map(json.loads, lines))

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

    def _note(self, cell: Cell, what: str) -> None:
        """Adds a line to the diary; one write in append mode, so that processes can share it."""
        line = {"cell": cell.key, "what": what, "host": socket.gethostname(), "pid": os.getpid()}
        text = json.dumps(line | {"time": round(time.time(), 3)}) + "\n"
        descriptor = os.open(
            self.out / "diary.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644
        )
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)
