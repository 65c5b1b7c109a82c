"""Every promise about cost, measured, with its noise; ends with status 1 if one is not kept.

    python benchmarks/performance.py [--out results.md] [--parts fits import memory select gpu] [--quick]

Training and validation: fits with and without run in turn, batch by batch, in one process and one thread at a
time, so that whatever else the machine does meets all of them alike (`_paired.py`). A cost is the processor time
of a whole epoch: fetching, hooks, the sixteenth batch at which the waiting ones are worked through, and the end
of the epoch with the decision. The fastest batches alone would leave out the latter, so every slice of an epoch
counts, with the lower quartile of what it took over the rounds, and a figure is the ratio of the sums. The same is
computed for plain against plain: the noise is how far from 1 the 95 % bootstrap interval of that ratio
reaches. A figure is missed if it is above its limit by more than the noise.

Bytes are counted, not sampled: tensors held by the recorder, and the length of checkpoint files.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _gpu
import _imports
import _memory
import lightning
import torch
from _paired import Data, Fit, Images, Ratio, by_position, hush, paired, side_by_side, spread
from lightning.pytorch.loggers import CSVLogger

import lightning_fairprune as lfp
from lightning_fairprune import quotas, select, signals

PARTS = ("memory", "import", "select", "fits", "gpu")


@dataclass(frozen=True, slots=True)
class Figure:
    """One promise and what was found.

    Args:
        name: of what.
        limit: the most that it may be; None for a figure without a promise.
        value: what was found; None if it could not be measured here.
        noise: what the value may be above the limit by chance.
        unit: of all three.
    """

    name: str
    limit: float | None
    value: float | None
    noise: float = 0.0
    unit: str = ""

    @property
    def verdict(self) -> str:
        if self.value is None:
            return "not measured: no GPU here"
        if self.limit is None:
            return ""
        if self.value <= self.limit:
            return "kept"
        return "within the noise" if self.value <= self.limit + self.noise else "MISSED"

    def cells(self) -> list[str]:
        def written(number: float | None) -> str:
            if number is None:
                return ""
            digits = 0 if number >= 100 else 1 if self.unit else 3
            return f"{number:.{digits}f}{f' {self.unit}' if self.unit else ''}"

        noise = written(self.noise) if self.noise else ""
        return [self.name, written(self.value), noise, written(self.limit), self.verdict]


HEADER = ["figure", "measured", "noise", "at most", "verdict"]


@dataclass(frozen=True, slots=True)
class Size:
    """How much to measure."""

    rounds: int = 12
    train: int = 6400
    val: int = 10_000
    samples: int = 10_000_000
    epochs: int = 200
    imports: int = 7


# ---------------------------------------------------------------------------------- training, validation


def default() -> lfp.DataPruning:
    return lfp.DataPruning(0.5, 1)


def el2n(warmup: int = 1) -> lfp.DataPruning:
    return lfp.DataPruning(0.5, warmup, score=lfp.scores.el2n, keep="hard")


def forgetting(warmup: int = 1) -> lfp.DataPruning:
    return lfp.DataPruning(0.5, warmup, score=lfp.scores.forgetting, keep="hard")


def ratio(rounds: list[dict[str, Fit]], kind: str, slices: Callable[[Fit], list[float]]) -> Ratio:
    costs, base = (
        torch.tensor([slices(found[name]) for found in rounds], dtype=torch.float64)
        for name in (kind, "plain")
    )
    return by_position(costs, base)


def of_epoch(stage: str, epoch: int) -> Callable[[Fit], list[float]]:
    return lambda fit: fit[stage, epoch]


def training(size: Size) -> Iterator[Figure]:
    kinds: dict[str, Callable[[], dict[str, Any]]] = {
        "plain": dict,
        "default": lambda: {"callbacks": [default()]},
        "el2n": lambda: {"callbacks": [el2n()]},
        "plain again": dict,
    }
    data = Data(Images(size.train), Images(256))
    side_by_side(kinds, Data(Images(512), Images(256)), turn=0)
    rounds = [side_by_side(kinds, data, turn=turn) for turn in range(size.rounds)]
    noise = ratio(rounds, "plain again", of_epoch("train", 0)).noise
    batches = len(rounds[0]["plain"]["train", 0])
    each = sum(rounds[0]["plain"]["train", 0]) / batches
    print(f"plain Lightning: {1000 * each:.1f} ms of processor time a training step", flush=True)
    for name, kind, limit in (
        ("warm-up epoch, EL2N recorded / plain", "el2n", 1.02),
        ("warm-up epoch, default (random + DRoP) / plain", "default", 1.005),
    ):
        yield Figure(name, limit, ratio(rounds, kind, of_epoch("train", 0)).value, noise)

    # The batches that a pruned epoch has, but its first, which reloads the loader: once a fit.
    kept = size.train // 2 // 128

    def swapped(fit: Fit) -> list[float]:
        return fit["train", 1][1 : kept - 1]

    noise = ratio(rounds, "plain again", swapped).noise
    for name, kind in (("default", "default"), ("EL2N", "el2n")):
        found = ratio(rounds, kind, swapped).value
        yield Figure(f"batch after the swap, {name} / plain", 1.00, found, noise)


def validation(size: Size) -> Iterator[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        count = iter(range(10**6))

        def logged(*callbacks: Any) -> dict[str, Any]:
            logger = CSVLogger(folder, version=next(count))
            return {"callbacks": [*callbacks], "logger": logger, "max_epochs": 3}

        kinds: dict[str, Callable[[], dict[str, Any]]] = {
            "plain": logged,
            # Figures come at the end of a fit, with this logger.
            "monitor": lambda: logged(lfp.RecallMonitor(figures=False)),
            "plain again": logged,
        }
        data = Data(Images(256), Images(size.val))
        found = [side_by_side(kinds, data, turn=turn) for turn in range(size.rounds // 2 + 1)][1:]
    epochs = [
        {kind: {("val", 0): fit["val", epoch]} for kind, fit in fits.items()}
        for fits in found
        for epoch in range(3)
    ]
    cost = of_epoch("val", 0)
    noise = ratio(epochs, "plain again", cost).noise
    value = ratio(epochs, "monitor", cost).value
    yield Figure("validation epoch, RecallMonitor / plain", 1.02, value, noise)


def fits(size: Size) -> Iterator[Figure]:
    yield from training(size)
    yield from validation(size)


# ------------------------------------------------------------------------------------------------- bytes


def memory(size: Size) -> Iterator[Figure]:
    every = tuple(signals.__all__)
    for name, recorded, grouped in (
        ("default", (), False),
        ("EL2N", ("el2n",), False),
        ("all signals and groups", every, True),
    ):
        held = _memory.device_bytes(
            recorded, grouped=grouped, epochs=size.epochs, samples=(8000, 24_000)
        )
        most = max(slope for slope, _ in held)
        yield Figure(
            f"device bytes a sample, 1 to {size.epochs} epochs, {name}", 28, most, unit="B"
        )
    for name, make, limit in (
        ("default", lambda warmup: lfp.DataPruning(0.5, warmup), None),
        ("EL2N", el2n, 8),
        ("Forgetting", forgetting, 16),
    ):
        inside, ends = _memory.checkpoint_bytes(make, warmup=10, samples=20_000)
        what = f"checkpoint bytes a sample, {name}"
        yield Figure(f"{what}, 10 epochs recorded", limit, ends[9], unit="B")
        yield Figure(f"{what}, after 9 epochs of 10", None, ends[8], unit="B")
        yield Figure(f"{what}, inside the tenth", None, inside[9], unit="B")


# ------------------------------------------------------------------------------------ select and quotas


def selection(size: Size) -> Iterator[Figure]:
    n, classes = size.samples, 1000
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(classes, (n,), generator=generator)
    score = torch.rand(n, generator=generator)
    quota = (torch.bincount(target, minlength=classes) * 0.3).long()
    calls: dict[str, Callable[[], object]] = {
        "sort": score.sort,
        "top": lambda: select(target, quota, score=score, keep="hard"),
        "sort again": score.sort,
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for turn in range(7):
        for name in names[turn % 3 :] + names[: turn % 3]:
            seconds[name].append(timed(calls[name]))
    noise = paired(seconds["sort again"], seconds["sort"]).noise
    found = paired(seconds["top"], seconds["sort"]).value
    yield Figure(f"select, top of {n:,} / torch.sort of as many float32", 0.6, found, noise)

    n, classes = 10**8, 21_841
    weight = torch.rand(classes, generator=generator).double() ** 3 + 1e-3
    sizes = quotas.apportion(weight, [n] * classes, n)
    recall = torch.rand(classes, generator=generator).double()
    slowest = []
    for _ in range(15):
        densities = (0.1, 0.3, 0.5, 0.7, 0.9)
        slowest.append(
            max(timed(lambda d=d: quotas.drop(sizes, recall, round(d * n))) for d in densities)
        )
    middle = spread(1000 * torch.tensor(slowest, dtype=torch.float64))
    noise = middle.high - middle.low
    yield Figure("quotas.drop, N = 10^8, K = 21,841", 50, middle.value, noise, "ms")


def timed(call: Callable[[], object]) -> float:
    begin = time.process_time()
    call()
    return time.process_time() - begin


# ------------------------------------------------------------------------------------ imports, the GPU


def importing(size: Size) -> Iterator[Figure]:
    found = {
        name: spread(1000 * torch.tensor(seconds, dtype=torch.float64))
        for name, seconds in _imports.imports(size.imports).items()
    }
    for what, name, limit in (
        ("import lightning.pytorch", "lightning", None),
        ("import lightning_fairprune, on top", "package", 50),
        ("the same and every public name, on top", "names", 50),
        ("fairprune --help", "help", None),
        ("python -c pass", "empty", None),
    ):
        middle = found[name]
        yield Figure(what, limit, middle.value, middle.high - middle.low, "ms")


def gpu(size: Size) -> Iterator[Figure]:
    here = torch.cuda.is_available()
    name = "host synchronisations a training step on CUDA, besides those of plain"
    waits = _gpu.waits() if here else None
    yield Figure(name, 0, None if waits is None else max(0.0, waits["el2n"] - waits["plain"]))
    name = "ResNet-18 bfloat16 training step on a GPU, EL2N recorded / plain"
    if not here:
        yield Figure(name, 1.02, None)
        return
    seconds = _gpu.epochs()
    noise = paired(seconds["plain again"], seconds["plain"]).noise
    yield Figure(name, 1.02, paired(seconds["el2n"], seconds["plain"]).value, noise)


# -------------------------------------------------------------------------------------------- the report


def machine() -> str:
    """Returns what decides how fast this is, and nothing that tells whose it is."""
    model = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            named = [
                line.split(":", 1)[1].strip() for line in file if line.startswith("model name")
            ]
        model = named[0] if named else model
    parts = [
        f"{model}, {os.cpu_count()} cores",
        *([torch.cuda.get_device_name()] if torch.cuda.is_available() else []),
        f"Python {platform.python_version()}",
        f"torch {torch.__version__}",
        f"lightning {lightning.__version__}",
    ]
    return ", ".join(parts)


def markdown(figures: list[Figure]) -> str:
    rows = [HEADER, ["---", "--:", "--:", "--:", "---"], *(figure.cells() for figure in figures)]
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    return f"Measured on: {machine()}; one thread.\n\n{table}\n"


MEASURES = {
    "memory": memory,
    "import": importing,
    "select": selection,
    "fits": fits,
    "gpu": gpu,
}
QUICK = Size(rounds=2, train=1024, val=1024, samples=100_000, epochs=3, imports=2)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="writes the table to a Markdown file")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--quick", action="store_true", help="tries the commands; no measurement")
    given = parser.parse_args(argv)
    hush()
    size = QUICK if given.quick else Size()
    print(machine(), flush=True)
    print("{:78}{:>12}{:>10}{:>10}  {}".format(*HEADER), flush=True)
    figures = []
    for part in given.parts:
        for figure in MEASURES[part](size):
            figures.append(figure)
            print("{:78}{:>12}{:>10}{:>10}  {}".format(*figure.cells()), flush=True)
    if given.out is not None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(markdown(figures))
    missed = [figure.name for figure in figures if figure.verdict == "MISSED"]
    print(f"missed: {'; '.join(missed)}" if missed else "none missed")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
