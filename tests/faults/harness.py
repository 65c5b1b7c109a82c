"""Breaks trainings, resumes them as a user would, and compares them with the uninterrupted ones.

A cell of the table is a training with a fault: a point, a way to break, a mode (processes and workers), a
policy of checkpoints. It must end as *identical*, with every batch, every kept sample, every logged value and
the last weights as without the fault; or as *detected*, with a message that says what is different.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ranks import meeting

TESTS = Path(__file__).resolve().parents[1]
MOST_SECONDS = (
    300  # far more than the slowest machine takes: nothing is waited for but a rank that hangs
)
MOST_ATTEMPTS = 4
# What may be said when something differs. All of it says what, and what to do.
TOLD = (
    "the checkpoint was taken on the last batch of epoch",
    "the checkpoint was taken inside the validation of epoch",
    # Lightning, of plain loaders without DataPruning.
    "You're resuming from a checkpoint that ended before the epoch ended",
)

MODES: dict[str, dict[str, int]] = {
    "1 process": {"ranks": 1, "workers": 0},
    "2 workers": {"ranks": 1, "workers": 2},
    "2 ranks": {"ranks": 2, "workers": 0},
}


@dataclass(frozen=True)
class Cell:
    """One training that is broken.

    Args:
        point: where, as `breaking` and `training` call it.
        way: how.
        mode: of `MODES`.
        policy: when checkpoints are written, of `training.POLICIES`.
        prune: what is pruned, of `training.PRUNE`.
        ranks: which of them break.
        changed: settings of `training.DEFAULTS` that the resumed training has otherwise.
    """

    point: str
    way: str
    mode: str = "1 process"
    policy: str = "step"
    prune: str = "scored"
    ranks: tuple[int, ...] = (0,)
    changed: tuple[tuple[str, Any], ...] = ()

    def processes(self, attempt: int) -> int:
        """Ranks of an attempt; the first has the settings of the mode."""
        ranks = MODES[self.mode]["ranks"]
        return dict(self.changed).get("ranks", ranks) if attempt else ranks

    def task(self, folder: Path, attempt: int) -> dict[str, Any]:
        return {
            "folder": str(folder),
            "attempt": attempt,
            "workers": MODES[self.mode]["workers"],
            "prune": self.prune,
            "policy": self.policy,
            "changed": dict(self.changed) if attempt else {},
            "fault": {"point": self.point, "way": self.way, "ranks": list(self.ranks)},
        }

    @property
    def whole(self) -> Cell:
        """The same without a fault; its policy makes no difference to what is trained."""
        return Cell("", "", self.mode, "epoch", self.prune)


@dataclass(frozen=True)
class Outcome:
    """What became of a cell.

    Args:
        verdict: ``"identical"``, ``"detected"`` or ``"FAILED"``.
        words: what was said, or what is wrong.
        ended: how the broken training ended, rank by rank.
        seconds: until it did.
    """

    verdict: str
    words: str
    ended: tuple[str, ...]
    seconds: tuple[float, ...]


class Zygote:
    """Runs trainings in forked children; several may be under way."""

    def __init__(self) -> None:
        path = [str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")]
        more = {"PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "faults.zygote"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | more,
            text=True,
        )
        self._lock, self._next = threading.Lock(), 0
        self._answers: dict[int, Future[dict[str, Any]]] = {}
        assert self._process.stdout.readline() == "ready\n"
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        for line in self._process.stdout:
            answer = json.loads(line)
            self._answers.pop(answer["id"]).set_result(answer)
        for future in self._answers.values():
            future.set_exception(RuntimeError("the zygote is gone"))

    def run(self, tasks: list[dict[str, Any]], timeout: float = MOST_SECONDS) -> dict[str, Any]:
        """Returns statuses and seconds when all ranks of a training have ended."""
        future: Future[dict[str, Any]] = Future()
        _store, told = meeting()  # until all have ended
        with self._lock:
            self._next += 1
            self._answers[self._next] = future
            request = {"id": self._next, "ranks": tasks, "meeting": told, "timeout": timeout}
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        return future.result(timeout + 30)

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def diary(folder: Path, ranks: int) -> Iterator[tuple[int, dict[str, Any]]]:
    for rank in range(ranks):
        path = folder / f"diary.{rank}.jsonl"
        for line in path.read_text().splitlines() if path.exists() else []:
            yield rank, json.loads(line)


def facts(folder: Path, ranks: int) -> tuple[dict[Any, Any], list[str]]:
    """What was trained, by what and where; and what was told twice in different words."""
    found: dict[Any, Any] = {}
    twice = []
    for rank, line in diary(folder, ranks):
        if line["what"] not in ("batch", "epoch", "end"):
            continue
        where = (line["what"], rank, json.dumps(line["key"]))
        if found.setdefault(where, line["facts"]) != line["facts"]:
            twice.append(difference(where, found[where], line["facts"]))
    return found, twice


def difference(where: Any, before: Any, after: Any) -> str:
    names = [k for k in before if before[k] != after.get(k)] + [k for k in after if k not in before]
    return f"{where[0]} {where[2]} of rank {where[1]}: {', '.join(names)}"


def compared(expected: dict[Any, Any], found: dict[Any, Any]) -> tuple[list[str], str]:
    """What differs or was never done, and what need not trouble anyone.

    Lightning does not repeat the end of an epoch in which a callback raised. A callback that notes it there,
    as the one of these trainings does, has no note of that epoch.
    """
    wrong = [
        difference(where, value, found[where])
        for where, value in expected.items()
        if where in found and found[where] != value
    ]
    missing = [where for where in expected if where not in found]
    if missing and not wrong and {what for what, _, _ in missing} == {"epoch"}:
        return [], "the end of the epoch is not repeated"
    return wrong + [f"{' '.join(map(str, where))} is missing" for where in missing], ""


def logged(folder: Path) -> dict[int, dict[str, list[tuple[int, float]]]]:
    """What rank 0 logged: attempt -> name -> steps and values, in order."""
    found: dict[int, dict[str, list[tuple[int, float]]]] = {}
    for _, line in diary(folder, 1):
        if line["what"] == "metric":
            step, name = line["key"]
            values = found.setdefault(line["attempt"], {}).setdefault(name, [])
            values.append((step, line["facts"]["value"]))
    return found


def compared_logs(expected: dict[str, Any], folder: Path) -> tuple[list[str], str]:
    """What was logged wrongly, and what need not trouble anyone.

    A value that was on its way to the logger when training broke may be lost. Lightning counts a step twice
    that is resumed after an exception in it, so that later values are logged one step later.
    """
    wrong, remarks = [], set()
    attempts = logged(folder)
    for name, values in expected.items():
        plain = [value for _, value in values]
        reached = 0
        for attempt, names in sorted(attempts.items()):
            mine = names.get(name, [])
            begin = 0 if attempt == 0 else len(plain) - len(mine)
            if [value for _, value in mine] != plain[begin : begin + len(mine)] and (
                attempt == max(attempts) or attempt == 0
            ):
                wrong.append(f"metric {name}: other values")
            elif mine and [step for step, _ in mine] != [
                step for step, _ in values[begin : begin + len(mine)]
            ]:
                remarks.add("logged one step later")
            if attempt == 0 or attempt == max(attempts):
                if begin > reached + 1:
                    wrong.append(f"metric {name}: values are missing")
                elif begin > reached:
                    remarks.add("one value not logged")
                reached = max(reached, begin + len(mine))
        if reached < len(plain) - 1:
            wrong.append(f"metric {name}: values are missing")
        elif reached < len(plain):
            remarks.add("one value not logged")
    return wrong, ", ".join(sorted(remarks))


class Faults:
    """Runs cells; uninterrupted trainings are run once each."""

    def __init__(self, zygote: Zygote, folder: Path) -> None:
        self._zygote, self._folder = zygote, folder
        self._lock, self._whole = threading.Lock(), dict[Cell, Future[tuple[Any, Any]]]()
        self._count = 0

    def _new_folder(self) -> Path:
        with self._lock:
            self._count += 1
            folder = self._folder / str(self._count)
        folder.mkdir(parents=True)
        return folder

    def _train(self, cell: Cell, folder: Path, attempt: int) -> dict[str, Any]:
        task = cell.task(folder, attempt)
        if attempt or not cell.point:
            task["fault"] = None
        return self._zygote.run([task] * cell.processes(attempt))

    def whole(self, cell: Cell) -> tuple[dict[Any, Any], dict[str, Any]]:
        """What the uninterrupted training of a cell does, and what it logs."""
        with self._lock:
            mine = cell.whole not in self._whole
            future = self._whole.setdefault(cell.whole, Future())
        if mine:
            try:
                folder = self._new_folder()
                answer = self._train(cell.whole, folder, 0)
                assert not any(answer["status"]), (answer, output(folder))
                done = facts(folder, MODES[cell.mode]["ranks"])[0]
                future.set_result((done, logged(folder)[0]))
            except BaseException as error:
                future.set_exception(error)
        return future.result()

    def __call__(self, cell: Cell) -> Outcome:
        """Breaks, resumes and compares."""
        (expected, log), folder = self.whole(cell), self._new_folder()
        ranks = MODES[cell.mode]["ranks"]
        answer = self._train(cell, folder, 0)
        ended, seconds = tuple(_ended(folder, answer)), tuple(answer["seconds"])

        def outcome(verdict: str, words: str = "") -> Outcome:
            return Outcome(verdict, words, ended, seconds)

        if not any((folder / f"armed.{rank}").exists() for rank in cell.ranks):
            return outcome("FAILED", "the point was never reached")
        if answer["hung"]:
            return outcome("FAILED", f"rank {answer['hung']} hangs")
        errors = []
        attempt = 0
        while any(answer["status"]):
            attempt += 1
            answer = self._train(cell, folder, attempt)
            if any(answer["status"]):
                errors.append(_ended(folder, answer)[0])
                newest = max((folder / "checkpoints").glob("last*"), key=os.path.getmtime)
                newest.unlink()  # what a user does with a file that cannot be read
            if attempt == MOST_ATTEMPTS:
                return outcome("FAILED", f"cannot be resumed: {errors[0]}")
        found, wrong = facts(folder, ranks)
        remarks = []
        for more, remark in (compared(expected, found), compared_logs(log, folder)):
            wrong += more
            remarks += [remark] if remark else []
        if cell.prune == "weights" and all(map(_is_lost_validation, wrong)):
            # Nothing but the report depends on it there.
            remarks += ["a validation is not repeated"] if wrong else []
            wrong = []
        lines = [line for _, line in diary(folder, ranks)]
        said = [line["facts"]["text"] for line in lines if line["what"] == "said"]
        torn = [
            f"{name}: {state}"
            for line in lines
            if line["what"] == "files"
            for name, state in line["facts"]["found"].items()
            if state != "whole"
        ]
        if torn:
            return outcome("FAILED", f"half a file, {torn[0]}")
        told = [text for text in said if text.startswith(TOLD) and _explains(text, wrong)]
        if errors:
            return outcome("FAILED" if wrong else "detected", wrong[0] if wrong else errors[0])
        if not wrong:
            return outcome("identical", ", ".join(remarks))
        if told:
            return outcome("detected", told[0])
        kinds = Counter(line.split()[0] for line in wrong)
        return outcome("FAILED", f"{dict(kinds)}, first {wrong[:3]}")


def _explains(text: str, wrong: list[str]) -> bool:
    """Whether nothing differs before the validation that a message names as lost, and no batch is missing."""
    found = re.search(r"of epoch (\d+)", text)
    batches = [line for line in wrong if line.startswith("batch")]
    if any(line.endswith("missing") for line in batches):
        return False
    epochs = [int(epoch) for line in batches for epoch in re.findall(r"^batch \[(\d+),", line)]
    return found is None or all(epoch > int(found[1]) for epoch in epochs)


def _is_lost_validation(line: str) -> bool:
    """Whether it is the validation after a checkpoint of the last batch, which Lightning does not run."""
    return line.endswith((": recalls", "is missing", "values are missing")) and not line.startswith(
        "batch"
    )


def _ended(folder: Path, answer: dict[str, Any]) -> list[str]:
    """How each rank ended: by a signal, an error, or by itself."""
    ended = []
    for rank, status in enumerate(answer["status"]):
        errors = [
            line["facts"]["text"]
            for r, line in diary(folder, rank + 1)
            if r == rank and line["what"] == "error"
        ]
        if rank in answer["hung"]:
            ended.append("hung")
        elif status < 0:
            ended.append(f"signal {-status}")
        elif errors:
            ended.append(errors[-1])
        else:
            ended.append("asked to end" if status else "by itself")
    return ended


def output(folder: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(folder.glob("out.*")))


def row(cell: Cell, outcome: Outcome) -> dict[str, Any]:
    """A line of the table."""
    return asdict(cell) | asdict(outcome)
