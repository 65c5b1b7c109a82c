"""How time and memory grow with samples, classes, epochs and ranks, and as which power.

    python benchmarks/growth.py [--most 100000000] [--only select update] [--figure growth.png]

Every point is a process of its own, forked from this one. Time is its processor time for one call, the fastest
of a few; between ranks, which wait for each other, the time of the wall. Memory is what the call adds to the
resident memory of the process at its peak: inputs, Python and torch are not in it (Linux only).

The exponent p of cost ~ x^p is the least-squares slope of the logarithms over the upper two and a half decades, where
fixed costs are over, of three points at least. A curve that rises by more than its row allows is marked, and the command ends with status 1.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_fairprune import Dynamics, metrics, quotas, scores, select
from lightning_fairprune._observe.recorder import EpochRecorder
from lightning_fairprune.counts import Tally

Call = Callable[[], object]
CLASSES, BATCH, EPOCHS = 1000, 1024, 10
SAMPLES = tuple(10**power for power in range(4, 9))
MANY_CLASSES = (2, 10, 100, 1000, 21_841)
MANY_EPOCHS = (1, 2, 5, 10, 20, 50, 100, 200)


@dataclass(frozen=True, slots=True)
class Curve:
    """One thing against one size.

    Args:
        name: of what.
        size: of what it is a function, and what else is held.
        points: where it is measured.
        make: from a point to the call that is timed; its inputs are made before.
        time: the largest exponent of the time that is right.
        memory: of the memory; None where a call holds next to nothing.
    """

    name: str
    size: str
    points: tuple[int, ...]
    make: Callable[[int], Call]
    time: float = 1.0
    memory: float | None = 1.0


def samples(n: int, classes: int = CLASSES) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(classes, (n,), generator=generator)
    quota = (torch.bincount(target, minlength=classes) * 0.3).long()
    return target, torch.rand(n, generator=generator), quota


def selecting(keep: str, n: int, classes: int = CLASSES) -> Call:
    target, score, quota = samples(n, classes)
    if keep == "random":
        return lambda: select(target, quota)
    return lambda: select(target, quota, score=score, keep=keep)  # type: ignore[arg-type]


def drop(n: int, classes: int) -> Call:
    generator = torch.Generator().manual_seed(0)
    weight = torch.rand(classes, generator=generator).double() ** 3 + 1e-3
    sizes = quotas.apportion(weight, [n] * classes, n)
    recall = torch.rand(classes, generator=generator).double()
    return lambda: quotas.drop(sizes, recall, n // 3)


def batches(n: int, classes: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    logits = torch.randn(BATCH, classes)
    where = torch.randperm(n).split(BATCH)
    return [(rows, logits[: len(rows)], rows % classes) for rows in where]


def an_epoch(n: int, classes: int = 10) -> Call:
    recorder, seen = EpochRecorder(n, ("el2n",)), batches(n, classes)

    def call() -> None:
        for batch in seen:
            recorder.update(*batch)
        recorder._work_through()

    return call


def some_steps(classes: int) -> Call:
    return an_epoch(16 * BATCH, classes)


def end_of_epoch(n: int, reduce_sum: Callable[[Tensor], Tensor] | None = None) -> Call:
    recorder = EpochRecorder(n, ("el2n",))
    recorder.update(torch.arange(n), torch.randn(10).expand(n, 10), torch.arange(n) % 10)
    recorder._work_through()
    full = {name: buffer.clone() for name, buffer in recorder._now.items()}

    def call() -> None:
        for name, buffer in full.items():
            recorder._now[name].copy_(buffer)
        recorder._rows["el2n"].clear()
        recorder._observed.clear()
        recorder.finish_epoch(0, *(() if reduce_sum is None else (reduce_sum,)))

    return call


def recorded(n: int, epochs: int) -> Dynamics:
    signal = torch.rand(epochs, n).half()
    return Dynamics(
        target=torch.arange(n) % 10,
        signals={"el2n": signal, "p_true": signal, "correct": signal > 0.5},
    )


def scoring(score: Callable[[Dynamics], Tensor], epochs: int, n: int = 100_000) -> Call:
    seen = recorded(n, epochs)
    return lambda: score(seen)


def state(epochs: int, n: int = 100_000) -> Call:
    """A checkpoint of the record of so many epochs."""
    recorder = EpochRecorder(n, ("el2n",))
    recorder._rows["el2n"] = list(torch.rand(epochs, n).half())
    recorder._observed = list(torch.ones(epochs, n, dtype=torch.bool))
    return recorder.state_dict


def metric(classes: int) -> Call:
    found = metrics.ClassRecall(classes)
    logits, target = torch.randn(256, classes), torch.randint(classes, (256,))
    return lambda: found.update(logits, target)


def tally(classes: int) -> Call:
    """A validation of 10 batches, counted and finished."""
    logits, target = torch.randn(256, classes), torch.randint(classes, (256,))

    def call() -> None:
        seen = Tally()
        for _ in range(10):
            seen.update(logits, target)
        seen.compute()

    return call


def of_samples(most: int) -> tuple[int, ...]:
    return tuple(n for n in SAMPLES if n <= most)


def curves(most: int) -> Iterator[Curve]:
    n, some = of_samples(most), of_samples(min(most, 10**7))
    classes, held = f"K, N = {min(most, 10**6):,}", min(most, 10**6)
    yield Curve("select, hard", "N, K = 1,000", n, lambda x: selecting("hard", x))
    yield Curve("select, random", "N, K = 1,000", n, lambda x: selecting("random", x))
    yield Curve("select, stratified", "N, K = 1,000", some, lambda x: selecting("stratified", x))
    yield Curve(
        "select, hard", classes, MANY_CLASSES, lambda x: selecting("hard", held, x), 0.5, 0.5
    )
    yield Curve("quotas.drop", "N, K = 1,000", n, lambda x: drop(x, CLASSES), 0, None)
    yield Curve("quotas.drop", "K, N = 10^8", MANY_CLASSES, lambda x: drop(10**8, x), 1, None)
    yield Curve("recorder.update, an epoch", "N, K = 10", some, an_epoch, 1, None)
    # Logits of many classes do not stay in the cache.
    yield Curve("recorder.update, 16 batches", "K, B = 1,024", MANY_CLASSES, some_steps, 1.2)
    # One pass over a few buffers: once they leave the cache and their copies need new pages, each sample costs more.
    yield Curve("recorder.finish_epoch", "N", some, end_of_epoch, 1.2)
    yield Curve("recorder.state_dict", "epochs, N = 100,000", MANY_EPOCHS, state)
    for name in ("el2n", "forgetting"):
        score = getattr(scores, name)
        yield Curve(
            f"scores.{name}", "epochs, N = 100,000", MANY_EPOCHS, lambda x, s=score: scoring(s, x)
        )
    yield Curve(
        "scores.dynamic_uncertainty",
        "epochs after the ninth, N = 100,000",
        (1, 2, 5, 10, 20, 50, 100, 200),
        lambda x: scoring(scores.dynamic_uncertainty, x + 9),
    )
    yield Curve("scores.el2n", "N, 10 epochs", some, lambda x: scoring(scores.el2n, EPOCHS, x))
    yield Curve("metrics.ClassRecall.update", "K, B = 256", MANY_CLASSES, metric, 1, None)
    yield Curve("RecallMonitor's count", "K, 10 batches of 256", MANY_CLASSES, tally, 1, None)


# ------------------------------------------------------------------------------------- one point


def measured(make: Callable[[], Call], clock: Callable[[], float]) -> tuple[float, float]:
    """Returns the seconds of a call and the bytes that it adds at its peak."""
    torch.set_num_threads(1)
    call = make()
    before, resettable = resident("VmRSS"), reset_peak()
    taken: list[float] = []
    begin = time.perf_counter()
    extra = 0.0
    while len(taken) < 3 or (time.perf_counter() - begin < 0.3 and len(taken) < 200):
        start = clock()
        call()
        taken.append(clock() - start)
        if len(taken) == 1:
            extra = resident("VmHWM") - before if resettable else math.nan
        if taken[-1] > 5:
            break
    return min(taken), max(extra, 0.0)


def resident(what: str) -> float:
    try:
        with open("/proc/self/status") as file:
            return next(1024.0 * int(line.split()[1]) for line in file if line.startswith(what))
    except OSError:
        return math.nan


def reset_peak() -> bool:
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        return False
    return True


def forked(function: Callable[[], tuple[float, float]]) -> tuple[float, float]:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=lambda: theirs.send(function()))
    process.start()
    theirs.close()
    try:
        found: tuple[float, float] = ours.recv()
    except EOFError:
        raise SystemExit("a measurement ended without a result; was it out of memory?") from None
    process.join()
    return found


def between_ranks(n: int, world: int) -> float:
    """Returns the seconds that the end of an epoch takes where so many ranks add up their records."""
    with tempfile.TemporaryDirectory() as folder:

        def on(rank: int) -> tuple[float, float]:
            if world == 1:
                return measured(lambda: end_of_epoch(n), time.perf_counter)
            dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=world)

            def add(tensor: Tensor) -> Tensor:
                total = tensor.clone()
                dist.all_reduce(total)
                return total

            call = end_of_epoch(n, add)
            taken = []
            for _ in range(5):  # as many on each rank
                dist.barrier()
                start = time.perf_counter()
                call()
                taken.append(time.perf_counter() - start)
            return min(taken), 0.0

        context = multiprocessing.get_context("fork")
        others = [context.Process(target=on, args=(rank,)) for rank in range(1, world)]
        for other in others:
            other.start()
        found = forked(lambda: on(0))[0]
        for other in others:
            other.join()
        return found


# ------------------------------------------------------------------------------------- the report


def exponent(points: tuple[int, ...], values: list[float]) -> float:
    """Returns the least-squares slope of the logarithms over the upper 2.5 decades; NaN below three points."""
    upper = [(x, y) for x, y in zip(points, values, strict=True) if x >= points[-1] / 300 and y > 0]
    if len(upper) < 3:
        return math.nan
    x, y = torch.tensor(upper, dtype=torch.float64).log().unbind(1)
    x = x - x.mean()
    return float((x * (y - y.mean())).sum() / x.square().sum())


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--most", type=int, default=SAMPLES[-1], help="samples, at most")
    parser.add_argument("--only", nargs="+", default=[""], help="parts of names of curves")
    parser.add_argument("--figure", type=Path, help="draws the curves (needs matplotlib)")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, one thread")
    drawn, fast = [], []
    for curve in curves(given.most):
        if not any(part in curve.name for part in given.only):
            continue
        print(f"\n{curve.name}, by {curve.size}")
        found = []
        for x in curve.points:
            found.append(
                forked(lambda c=curve, x=x: measured(lambda: c.make(x), time.process_time))
            )
            print(
                f"{x:>13,}{1000 * found[-1][0]:>13.3f} ms{found[-1][1] / 2**20:>11.1f} MiB",
                flush=True,
            )
        seconds, peak = ([point[i] for point in found] for i in (0, 1))
        # Below a few MiB a peak is pages of the allocator.
        powers = [
            ("time", exponent(curve.points, seconds), curve.time),
            *(
                [("memory", exponent(curve.points, peak), curve.memory)]
                if curve.memory is not None and peak[-1] > 2**25
                else []
            ),
        ]
        for what, power, right in powers:
            mark = ""
            if power > right + 0.2:
                mark = "  RISES FASTER THAN IT SHOULD"
                fast.append(f"{curve.name} by {curve.size}: {what}")
            print(
                f"{'':13}{what} ~ {curve.size.split(',')[0]}^{power:.2f}, at most {right:g}{mark}"
            )
        drawn.append((curve, seconds, peak))
    if any("ranks" in part or not part for part in given.only):
        print("\nrecorder.finish_epoch, time of the wall by ranks (gloo, one machine)")
        for n in of_samples(min(given.most, 10**7)):
            one, two = (between_ranks(n, world) for world in (1, 2))
            print(
                f"{n:>13,}{1000 * one:>13.3f} ms{1000 * two:>11.3f} ms{two / one:>8.2f} x",
                flush=True,
            )
    if given.figure is not None:
        draw(drawn, given.figure)
    print(
        f"\nrises too fast: {'; '.join(fast)}" if fast else "\nnothing rises faster than it should"
    )
    return 1 if fast else 0


def draw(drawn: list[tuple[Curve, list[float], list[float]]], path: Path) -> None:
    from matplotlib.figure import Figure

    axes = {size: [c for c, *_ in drawn if c.size[0] == size] for size in ("N", "K", "e")}
    figure = Figure(figsize=(12, 7), layout="constrained")
    panels = figure.subplots(2, 3, squeeze=False)
    for column, (size, own) in enumerate(axes.items()):
        for curve, seconds, peak in drawn:
            if curve not in own:
                continue
            style = {"marker": ".", "label": curve.name, "color": f"C{own.index(curve)}"}
            panels[0][column].loglog(curve.points, seconds, **style)
            if curve.memory is not None:
                mebibytes = [value / 2**20 if value else math.nan for value in peak]
                panels[1][column].loglog(curve.points, mebibytes, **style)
        called = {"N": "samples", "K": "classes", "e": "epochs"}[size]
        panels[1][column].set_xlabel(called)
        for row in panels:
            row[column].legend(fontsize=7)
    panels[0][0].set_ylabel("seconds")
    panels[1][0].set_ylabel("MiB added at the peak")
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    sys.exit(main())
