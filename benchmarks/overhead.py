"""What pruning weights costs a training step: the same fit with and without, in turn, in one process.

    python benchmarks/overhead.py [--rounds 16]

A small CNN (batch 128, CPU, one thread) is trained for two epochs plain, with nine tenths of its weights removed
before the first step (`WeightPruning`), and plain again; batch by batch in turn, as in `performance.py`, which has the
figures of `DataPruning` and `RecallMonitor` and says how figures and noise are computed.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from typing import Any, ClassVar

import torch
from _paired import Data, Images, by_position, hush, side_by_side

import lightning_fairprune as lfp


class Weights(lfp.WeightPruning):
    """Notes how long the pruning itself takes: the criterion, and masks of it."""

    seconds: ClassVar[list[float]] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        start = time.thread_time()
        super().on_train_start(trainer, pl_module)
        self.seconds.append(time.thread_time() - start)


def weights() -> dict[str, Any]:
    return {"callbacks": [Weights(lfp.criteria.undecayed, 0.9, start=0, end=0, num_batches=8)]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=16)
    rounds = parser.parse_args().rounds
    hush()
    data = Data(Images(6400), Images(256))
    kinds: dict[str, Any] = {"plain": dict, "weights": weights, "plain again": dict}
    side_by_side(kinds, Data(Images(512), Images(256)), turn=0)
    found = [side_by_side(kinds, data, turn=turn) for turn in range(rounds)]
    costs = {
        (kind, epoch): torch.tensor([fits[kind]["train", epoch] for fits in found])
        for kind in kinds
        for epoch in (0, 1)
    }
    steps = len(found[0]["plain"]["train", 0])
    step = float(costs["plain", 0].quantile(0.25, dim=0).sum()) / steps
    print(f"{platform.machine()}, torch {torch.__version__}, 1 thread, {rounds} rounds")
    print(f"plain Lightning: {1000 * step:.2f} ms a step")
    for epoch in (0, 1):
        ratio = by_position(costs["weights", epoch], costs["plain", epoch])
        noise = by_position(costs["plain again", epoch], costs["plain", epoch]).noise
        print(f"step with masks / plain, epoch {epoch}      {ratio.value:.3f}, noise {noise:.3f}")
    once = statistics.median(Weights.seconds[1:]) / step
    print(f"pruning once (undecayed, 8 batches)   {once:.1f} training steps")


if __name__ == "__main__":
    main()
