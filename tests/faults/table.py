"""Runs the whole table of faults and prints it as markdown.

    python tests/faults/table.py [--jobs 2] [--only WORD] [--out table.md]

Ends with status 1 if any cell is neither identical nor detected.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from faults.harness import MODES, Cell, Faults, Outcome, Zygote

# Warm-up epochs 0 and 1 have 11 batches, pruned epochs 2 and 3 have 5.
STEPS = {
    "first step": "step 0.0",
    "middle of a warm-up epoch": "step 1.5",
    "last batch of the warm-up": "step 1.10",
    "after the last batch of the warm-up": "after step 1.10",
    "validation": "validation 1.1",
    "reduction at the end of the warm-up": "reduction 1",
    "decision": "decision 0",
    "after the decision": "decided 1",
    "swap of the loader": "swap",
    "start of the first pruned epoch": "epoch 2",
    "first pruned batch": "step 2.0",
    "after the first pruned batch": "after step 2.0",
    "middle of a pruned epoch": "step 2.2",
    "last batch of a pruned epoch": "step 2.4",
    "validation of a pruned epoch": "validation 2.1",
    "next decision": "decision 1",
    "last step": "step 3.4",
}
NAMES = {point: name for name, point in STEPS.items()}
# way -> policies of checkpoints, for each mode. Only what happens in a process is repeated in the others.
WAYS: dict[str, dict[str, tuple[str, ...]]] = {
    "1 process": {
        "kill": ("step", "epoch", "validation", "both"),
        "term": ("step", "epoch", "exception"),
        "error": ("step", "exception"),
        "worker": ("step",),
        "logger": ("step", "exception"),
        "disk": ("step", "epoch"),
    },
    "2 workers": {
        "kill": ("step", "epoch"),
        "term": ("step",),
        "error": ("step",),
        "worker": ("step", "epoch"),
        "worker killed": ("step",),
    },
    "2 ranks": {
        "kill": ("step", "epoch"),
        "term": ("step",),
        "error": ("step",),
        "worker": ("epoch",),
        "logger": ("step",),
        "disk": ("step",),
    },
}
FILES = (
    "pruning.safetensors",
    "pruning.json",
    "recalls.safetensors",
    "recalls.json",
    "dynamics.safetensors",
    "selection.safetensors",
)


def cells() -> Iterator[Cell]:
    """Every cell of the table."""
    for mode, settings in MODES.items():
        last = settings["ranks"] - 1
        for point in STEPS.values():
            for way, policies in WAYS[mode].items():
                if way in ("worker", "worker killed") and point == STEPS["last step"]:
                    continue  # all samples have been read by then
                # Rank 0 alone logs and writes; a scheduler asks all ranks to end.
                ranks = (0,) if way in ("logger", "disk") else (last,)
                for policy in policies:
                    yield Cell(
                        point,
                        way,
                        mode,
                        policy,
                        ranks=tuple(range(last + 1)) if way == "term" else ranks,
                    )
            if last:
                yield Cell(point, "kill", mode, "epoch", ranks=(0,))
    yield from others("1 process", ("step", "epoch"))
    yield from others("2 ranks", ("epoch",))
    for file in FILES:
        for when, ways in (("half", ("kill", "disk")), ("before rename", ("kill", "error"))):
            for way in ways:
                if not (way == "disk" and file.endswith(".json")):
                    yield Cell(f"{when} {file}", way, policy="epoch")
    for point in ("pruning of weights", "validation 1.1", "epoch 2", "step 2.5", "validation 2.1"):
        for way, policies in WAYS["1 process"].items():
            # Lightning resumes nearly no batch of an epoch in whose start an exception was saved.
            for policy in policies[: 2 if way in ("kill", "term") else 1 if way == "error" else 0]:
                yield Cell(point, way, policy=policy, prune="weights")
        yield Cell(point, "kill", "2 ranks", "epoch", "weights", (1,))
    for epoch in (0, 1, 2):
        for policy in ("step", "epoch"):
            yield Cell(f"half checkpoint {epoch}", "kill", policy=policy)


def others(mode: str, policies: tuple[str, ...]) -> Iterator[Cell]:
    """Other kinds of pruning, around the decision."""
    last = MODES[mode]["ranks"] - 1
    for prune in ("restart", "random"):
        # Without a score nothing is left to be added up after the first epoch.
        for point in ["reduction 0", *list(STEPS.values())[4:13]]:
            if point != "reduction 1":
                for policy in policies:
                    yield Cell(point, "kill", mode, policy, prune, (last,))
                if not last:
                    yield Cell(point, "error", mode, "exception", prune)
    for point in ("pass", "decision 0", "swap", "before rename pass.0", "step 2.2"):
        for way in ("kill", "error"):
            for policy in policies:
                yield Cell(point, way, mode, policy, "pass", (last,))


def words(cell: Cell) -> str:
    """The point as a person would say it."""
    return NAMES.get(cell.point, cell.point)


def markdown(rows: list[tuple[Cell, Outcome]]) -> str:
    """The table: point x way, one cell for all modes and policies that agree."""
    lines = [
        "| point | way | pruning | mode | checkpoints | ranks | ended | verdict |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for cell, found in rows:
        ended = "; ".join(
            f"{how.splitlines()[0][:60]} ({seconds:.1f} s)"
            for how, seconds in zip(found.ended, found.seconds, strict=True)
        )
        said = f': "{found.words.splitlines()[0][:90]}"' if found.words else ""
        ranks = ", ".join(map(str, cell.ranks))
        what = (words(cell), cell.way, cell.prune, cell.mode, cell.policy, ranks, ended)
        lines.append(f"| {' | '.join(what)} | {found.verdict}{said} |".replace("\n", " "))
    return "\n".join(lines) + "\n"


def main() -> int:
    """Runs what was asked for; returns the status."""
    parser = argparse.ArgumentParser(description="Break trainings and resume them.")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", default="", help="cells whose description has this word")
    parser.add_argument("--out", type=Path, help="where to write the table besides printing it")
    options = parser.parse_args()
    wanted = [cell for cell in cells() if options.only in str(cell)]
    zygote, rows, began = Zygote(), [], time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults") as folder:
        faults = Faults(zygote, Path(folder))
        with ThreadPoolExecutor(options.jobs) as pool:
            for done, found in enumerate(pool.map(faults, wanted), start=1):
                rows.append((wanted[done - 1], found))
                if found.verdict == "FAILED":
                    print(
                        f"FAILED {wanted[done - 1]}: {found.words} {found.ended}", file=sys.stderr
                    )
                if done % 25 == 0:
                    spent = time.monotonic() - began
                    print(f"{done}/{len(wanted)} in {spent:.0f} s", file=sys.stderr)
    zygote.close()
    table = markdown(rows)
    print(table)
    count = Counter(found.verdict for _, found in rows)
    summary = ", ".join(f"{number} {verdict}" for verdict, number in sorted(count.items()))
    print(f"{len(rows)} cells: {summary}; {time.monotonic() - began:.0f} s")
    if options.out is not None:
        options.out.write_text(f"{table}\n{len(rows)} cells: {summary}\n")
    return int(count["FAILED"] > 0)


if __name__ == "__main__":
    sys.exit(main())
