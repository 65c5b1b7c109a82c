"""Breaks trainings at random moments, resumes them, some with other settings, and says what came of each.

    python tests/faults/broken.py [--count 150] [--seed 0] [--jobs 2]

*identical*: each batch, kept sample, logged value and weight is as without the fault. *whole*: with other settings
every epoch has trained on each of its samples, none left out or repeated. *told*: an error or a warning says what is
different. All else is *SILENT*, and the command ends with status 1.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from faults.harness import MODES, Cell, Faults, Outcome, Zygote, diary, facts

EPOCHS, WARMUP, BATCHES = 4, 2, (11, 11, 5, 5)
POLICIES = ("step", "step", "async", "async", "epoch", "validation", "exception", "both", "top")
WAYS = ("kill", "kill", "term", "error", "interrupt", "disk", "logger")
PRUNE = ("scored", "scored", "random", "restart", "weights")
CHANGES: tuple[dict[str, Any], ...] = (
    {"batch": 4}, {"batch": 7}, {"batch": 20}, {"batch": 25, "workers": 2}, {"workers": 2}, {"accumulate": 2},
    {"accumulate": 3, "batch": 6}, {"max_epochs": 6}, {"density": 0.5}, {"max_epochs": 5, "batch": 14},
)  # fmt: skip
# What the library, or Lightning of plain loaders, says of a difference.
WORDS = ("resum", "the checkpoint was taken", "is not repeated")
ERRORS = ("ValueError: ", "RuntimeError: ", "TypeError: ", "MisconfigurationException: ")


def cells(count: int, seed: int) -> Iterator[Cell]:
    """Draws trainings to break; every third is resumed with other settings."""
    draw = random.Random(seed)
    for i in range(count):
        mode = draw.choices(list(MODES), (6, 2, 2))[0]
        ranks = MODES[mode]["ranks"]
        prune, policy, way = draw.choice(PRUNE), draw.choice(POLICIES), draw.choice(WAYS)
        epoch = draw.randrange(EPOCHS)
        batch = draw.randrange(11 if prune == "weights" else BATCHES[epoch])
        point = draw.choice(
            (
                f"step {epoch}.{batch}",
                f"step {epoch}.{batch}",
                f"after step {epoch}.{batch}",
                f"after step {epoch}.{batch}",
                f"validation {epoch}.{draw.randrange(3)}",
                f"epoch {epoch}",
                f"decided {epoch}",
            )
        )
        # Rank 0 alone logs and writes; a scheduler, like a person, asks all ranks to end.
        broken = tuple(range(ranks)) if way in ("term", "interrupt") else (draw.randrange(ranks),)
        broken = (0,) if way in ("disk", "logger") else broken
        change: dict[str, Any] = {}
        if i % 3 == 2:
            change = draw.choice(CHANGES)
            if draw.random() < 0.25:
                change = {"ranks": 3 - ranks}
        yield Cell(point, way, mode, policy, prune, broken, tuple(change.items()))


class Broken(Faults):
    """Runs cells whose settings change when they are resumed."""

    def __call__(self, cell: Cell) -> Outcome:
        """Breaks, resumes and judges."""
        if not cell.changed:
            found = super().__call__(cell)
            if found.words == "the point was never reached":
                return Outcome("not reached", found.words, found.ended, found.seconds)
            names = {"detected": "told", "FAILED": "SILENT"}
            return Outcome(names.get(found.verdict, found.verdict), *_rest(found))
        folder = self._new_folder()
        answer = self._train(cell, folder, 0)
        seconds = tuple(answer["seconds"])
        if not any((folder / f"armed.{rank}").exists() for rank in cell.ranks):
            return Outcome("not reached", "", (), seconds)
        answer = self._train(cell, folder, 1)
        if any(answer["status"]):
            errors = [
                line["facts"]["text"] for _, line in diary(folder, 2) if line["what"] == "error"
            ]
            said = errors[-1] if errors else f"ended with {answer['status']}"
            return Outcome("told" if said.startswith(ERRORS) else "SILENT", said, (), seconds)
        found, words = self._judged(cell, folder)
        return Outcome(found, words, (), seconds)

    def _judged(self, cell: Cell, folder: Path) -> tuple[str, str]:
        expected, _ = self.whole(cell)
        done, _ = facts(folder, 2)
        if all(done.get(where) == value for where, value in expected.items() if where[0] != "end"):
            return "identical", ""
        lines = [line for _, line in diary(folder, 2) if line["attempt"] == 1]
        said = [line["facts"]["text"] for line in lines if line["what"] == "said"]
        told = [text for text in said if any(word in text for word in WORDS)]
        wrong = [] if cell.prune == "weights" else list(_not_whole(cell, folder))
        if cell.prune == "weights" and _position(cell, folder)[1] and not told:
            wrong = ["a plain loader begins inside an epoch"]
        if not wrong:
            return "whole", told[0] if told else ""
        return ("told", told[0]) if told else ("SILENT", "; ".join(wrong[:3]))


def _rest(found: Outcome) -> tuple[Any, ...]:
    return found.words, found.ended, found.seconds


def _position(cell: Cell, folder: Path) -> tuple[int, int]:
    """Epoch in which the resumed training began, and the batches of it that were done; it had the first settings."""
    begins = [
        line["facts"]
        for _, line in diary(folder, 1)
        if line["what"] == "begin" and line["attempt"] == 1
    ]
    epoch, step = begins[-1]["epoch"], begins[-1]["step"]
    before = 11 * epoch if cell.prune == "weights" else sum(BATCHES[:epoch])
    return epoch, max(0, step - before)


def _not_whole(cell: Cell, folder: Path) -> Iterator[str]:
    """Yields how an epoch differs from one that trains on each of its samples once."""
    first, batches = _position(cell, folder)
    batches = min(batches, BATCHES[first] if first < EPOCHS else 0)
    trained: dict[int, list[int]] = {}
    before: set[int] = set()
    for _, line in diary(folder, 2):
        if line["what"] != "batch":
            continue
        epoch, i = line["key"]
        if line["attempt"] == 1:
            trained.setdefault(epoch, []).extend(line["facts"]["samples"])
        elif epoch == first and i < batches:
            before |= set(line["facts"]["samples"])
    most = (
        max(cell.processes(0), cell.processes(1)) - 1
    )  # ranks repeat samples to have equally many
    settings = dict(cell.changed)
    epochs = settings.get("max_epochs", EPOCHS)
    kept = round(103 * settings.get("density", 0.4))  # if it begins anew, without a checkpoint
    for epoch in range(first, epochs):
        samples, rest = trained.get(epoch, []), before if epoch == first else set()
        size = 103 if epoch < WARMUP else kept
        if len(samples) - len(set(samples)) + len(rest & set(samples)) > most:
            yield f"epoch {epoch} repeats samples"
        if len(rest | set(samples)) != size:
            yield f"epoch {epoch} trains on {len(rest | set(samples))} of {size} samples"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    given = parser.parse_args()
    zygote, start = Zygote(), time.monotonic()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        broken = Broken(zygote, Path(folder))
        drawn = list(cells(given.count, given.seed))
        verdicts: Counter[str] = Counter()
        with ThreadPoolExecutor(given.jobs) as pool:
            for cell, found in zip(drawn, pool.map(broken, drawn), strict=True):
                verdicts[found.verdict] += 1
                changed = ", ".join(f"{name}={value}" for name, value in cell.changed) or "-"
                print(
                    f"| {cell.point} | {cell.way} | {cell.mode} | {cell.policy} | {cell.prune} | {changed} | "
                    f"{found.verdict} | {found.words.splitlines()[0][:160] if found.words else ''} |",
                    flush=True,
                )
        zygote.close()
    print(f"{given.count} trainings: {dict(verdicts)}, {time.monotonic() - start:.0f} s")
    return int(verdicts["SILENT"] > 0)


if __name__ == "__main__":
    sys.exit(main())
