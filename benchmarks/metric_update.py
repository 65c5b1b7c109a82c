"""What an update of our metrics costs next to one of torchmetrics, in turn, in one process.

    python benchmarks/metric_update.py [--rounds 60]

Each round times one update of MulticlassRecall (no average, no validation), of our ClassRecall, and of a
MetricCollection of all our metrics, in an order that turns from round to round: B = 256 float32 logits, CPU,
one thread. The ratio is the median over rounds of time over torchmetrics' time in the same round.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
import torchmetrics
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassRecall

from lightning_fairprune import metrics

BATCH = 256


def ours(num_classes: int) -> MetricCollection:
    before = torch.rand(num_classes)
    compared = (
        metrics.RecallDistortion,
        metrics.RecallRetention,
        metrics.AdjustedRecallChange,
        metrics.MaxDisparity,
        metrics.ClassIntensification,
        metrics.IntensificationRatio,
    )
    alone = (
        metrics.ClassRecall,
        metrics.WorstClassRecall,
        metrics.RecallGap,
        metrics.RecallStd,
        metrics.ZeroRecallClasses,
        metrics.RecallBalance,
    )
    return MetricCollection(
        [
            *(metric(num_classes) for metric in alone),
            metrics.WorstKRecall(num_classes, k=2),
            metrics.RecallCVaR(num_classes, level=0.1),
            *(metric(num_classes, before) for metric in compared),
        ]
    )


def measure(num_classes: int, rounds: int, calls: int) -> dict[str, list[float]]:
    """Returns the seconds of one update, by round."""
    theirs = MulticlassRecall(num_classes, average=None, validate_args=False)
    updates: dict[str, Callable[[torch.Tensor, torch.Tensor], None]] = {
        "torchmetrics": theirs.update,
        "ClassRecall": metrics.ClassRecall(num_classes).update,
        "all of ours": ours(num_classes).update,
    }
    logits, target = torch.randn(BATCH, num_classes), torch.randint(num_classes, (BATCH,))
    for update in updates.values():
        update(logits, target)
    seconds: dict[str, list[float]] = {name: [] for name in updates}
    names = list(updates)
    for turn in range(rounds):
        for name in names[turn % 3 :] + names[: turn % 3]:
            begin = time.perf_counter()
            for _ in range(calls):
                updates[name](logits, target)
            seconds[name].append((time.perf_counter() - begin) / calls)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=60)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(
        f"{platform.machine()}, torch {torch.__version__}, torchmetrics {torchmetrics.__version__}, "
        f"1 thread, B = {BATCH}"
    )
    print(f"{'K':>6}  {'':14}{'µs':>10}  / torchmetrics")
    # torchmetrics counts a K x K matrix: seconds and gigabytes for the last one.
    for num_classes, share, calls in ((10, 1, 100), (1000, 1, 10), (21_841, 20, 1)):
        seconds = measure(num_classes, max(rounds // share, 3), calls)
        for name, values in seconds.items():
            ratios = [a / b for a, b in zip(values, seconds["torchmetrics"], strict=True)]
            median = statistics.median(values) * 1e6
            print(f"{num_classes:>6}  {name:14}{median:>10.1f}  {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
