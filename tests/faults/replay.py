"""Runs fits with DataPruning under many settings of the Trainer, and each of them again without it.

A fit with the callback notes which batches each step was given, and how long the loader was. The same settings
without the callback are given the same batches, and must come to the same: steps, rates, validations, metric
rows, checkpoints, and weights to the bit. A setting ends as *held*; as *refused*, with a sentence of the library
before the first step; or as *FAILED*.

With ``after="restart"`` the replay itself sets weights, buffers, optimisers and schedules back to those of the start
of training, at the start of the first pruned epoch; optimisers whose schedule is planned are configured again. The
Trainer's clocks count steps of training and validation, not seconds (`clock.Clock`).
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import lightning_fairprune as lfp

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import ranks
from faults.design import FACTORS, Setting, settings
from faults.fits import Fit, fit

LIBRARY = str(Path(lfp.__file__).parent)


@dataclass(frozen=True)
class Outcome:
    """What became of a setting: ``"held"``, ``"refused"`` or ``"FAILED"``, and why."""

    verdict: str
    words: str = ""


# --------------------------------------------------------------------------------- what is compared


def difference(a: Any, b: Any, where: str = "") -> str:
    """Returns where two values first differ; nothing if they are the same to the bit."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        same = a.dtype == b.dtype and torch.equal(a.nan_to_num(1e30), b.nan_to_num(1e30))
        return "" if same else f"{where}: {a.flatten()[:3]} is {b.flatten()[:3]} in the replay"
    if isinstance(a, dict) and isinstance(b, dict):
        ours, theirs = ([key for key in it if key != "combined_loader"] for it in (a, b))
        if ours != theirs:
            return f"{where}: has {ours}, {theirs} in the replay"
        pairs: Any = ((f"{where}/{key}", a[key], b[key]) for key in ours)
    elif isinstance(a, list | tuple) and isinstance(b, list | tuple):
        if len(a) != len(b):
            return f"{where}: has {len(a)}, {len(b)} in the replay"
        pairs = ((f"{where}/{i}", *pair) for i, pair in enumerate(zip(a, b, strict=True)))
    else:
        return "" if repr(a) == repr(b) else f"{where}: {a!r} is {b!r} in the replay"
    return next((found for name, x, y in pairs if (found := difference(x, y, name))), "")


def _compared(pruned: Fit, replayed: Fit) -> str:
    if replayed.error is not None:
        return f"the replay raised {_told(replayed.error)}"
    for i, (a, b) in enumerate(zip(pruned.diary.events, replayed.diary.events, strict=False)):
        if difference(list(a), list(b)):
            return f"event {i}: {a} is {b} in the replay, after {pruned.diary.events[i - 1]}"
    counts = len(pruned.diary.events), len(replayed.diary.events)
    if counts[0] != counts[1]:
        return f"{counts[0]} events are {counts[1]} in the replay"
    return difference(pruned.final, replayed.final)


def _told(error: BaseException) -> str:
    place = traceback.extract_tb(error.__traceback__)[-1]
    words = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {words[0]} ({Path(place.filename).name}:{place.lineno})"


def _is_refusal(pruned: Fit) -> bool:
    """Whether the library raised an error of its own before the first step of training."""
    error, events = pruned.error, pruned.diary.events
    inside = traceback.extract_tb(error.__traceback__)[-1].filename.startswith(LIBRARY)  # type: ignore[union-attr]
    return (
        inside
        and isinstance(error, ValueError | TypeError)
        and not any(event[0] == "begun" for event in events)
    )


def _missed(setting: Setting, pruned: Fit) -> str:
    """What a fit that the replay agrees with lacks."""
    if not any(epoch.pruned for epoch in pruned.diary.epochs):
        told = any("nothing was trained on the kept samples" in words for words in pruned.told)
        return "" if told or pruned.final["rank"] else "nothing was pruned, and it was not told"
    planned, steps = sum(pruned.diary.planned), pruned.final["global_step"]
    late = any("the warm-up lasts one more epoch" in words for words in pruned.told)
    whole = setting["length"] == "epochs" and setting["callback"] != "early stopping" and not late
    # The Trainer configures optimisers before it looks for a batch size.
    whole = whole and setting["tuner"] != "batch size"
    if whole and planned not in (0, steps):
        return f"{planned} steps were planned, {steps} made"
    return ""


def replay(setting: Setting, folder: Path) -> Outcome:
    """Runs a setting with the callback and without it, and compares the two."""
    for name in ("pruned", "replayed"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    pruned = fit(setting, folder / "pruned")
    if pruned.error is not None:
        return Outcome("refused" if _is_refusal(pruned) else "FAILED", _told(pruned.error))
    found = _compared(pruned, fit(setting, folder / "replayed", pruned.diary))
    found = found or _missed(setting, pruned)
    return Outcome("FAILED", found) if found else Outcome("held")


def _on_rank(setting: Setting, folder: str) -> list[str]:
    found = replay(setting, Path(folder))
    return [found.verdict, found.words]


def together(wanted: list[Setting], folder: Path) -> list[Outcome]:
    """Runs settings of two processes; the worse of what the two found counts."""
    folder.mkdir()
    tasks = [{"setting": it, "folder": str(folder / str(i))} for i, it in enumerate(wanted)]
    found = ranks.launch(__file__, tasks, folder)
    order = ["held", "refused", "FAILED"]
    return [Outcome(*max(of, key=lambda one: order.index(one[0]))) for of in found]


def words(setting: Setting) -> str:
    """The setting by its levels that are not the first of their factor."""
    return ", ".join(f"{k}={v}" for k, v in setting.items() if v != FACTORS[k][0]) or "as it comes"


def main() -> int:
    """Runs what was asked for; returns the status."""
    parser = argparse.ArgumentParser(description="Replay fits with DataPruning without it.")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, nargs="*", help="numbers of settings")
    parser.add_argument("--out", type=Path, help="where to write the list besides printing it")
    options = parser.parse_args()
    rows, began = {}, time.monotonic()
    chosen = dict(enumerate(settings(options.count, options.seed)))
    if options.only:
        chosen = {i: chosen[i] for i in options.only}
    folder = Path(tempfile.mkdtemp(prefix="replay"))
    try:
        both = {i: it for i, it in chosen.items() if it["strategy"] == "ddp"}
        if both:
            rows = dict(zip(both, together([*both.values()], folder / "ddp"), strict=True))
        for i, setting in chosen.items():
            if i not in rows:
                rows[i] = replay(setting, folder / str(i))
                shutil.rmtree(folder / str(i))
            if rows[i].verdict == "FAILED":
                print(f"{i}: {words(setting)}: {rows[i].words}", file=sys.stderr, flush=True)
    finally:
        shutil.rmtree(folder)
    count = Counter(found.verdict for found in rows.values())
    told = Counter(found.words for found in rows.values() if found.verdict == "refused")
    lines = [f"{number} x {sentence}" for sentence, number in told.most_common()]
    summary = ", ".join(f"{count[verdict]} {verdict}" for verdict in ("held", "refused", "FAILED"))
    lines.append(f"{len(rows)} settings: {summary}; {time.monotonic() - began:.0f} s")
    print("\n".join(lines))
    if options.out is not None:
        listed = {i: [found.verdict, found.words, chosen[i]] for i, found in sorted(rows.items())}
        options.out.write_text(json.dumps(listed, indent=1))
    return int(count["FAILED"] > 0)


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1].endswith("settings.json"):
        ranks.main(_on_rank)
    sys.exit(main())
