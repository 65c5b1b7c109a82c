"""What pruning costs a training step: the same fit with and without, in turn, in one process.

    python benchmarks/overhead.py [--rounds 16]

Each round trains a small CNN (batch 128, CPU, one thread) once with plain Lightning, once with the
default DataPruning, once with EL2N recorded, once with nine tenths of the weights removed before the first step
(WeightPruning), and once more plain, in an order that turns from round to round. A batch is timed from the end of the one before it, so fetching counts, in processor time, so
that other processes count less. What else the machine does only ever adds, so of all batches of a kind
the fastest fifth is compared; the two plain kinds show the noise that is left.
"""

from __future__ import annotations

import argparse
import logging
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

import lightning_fairprune as lfp

BATCH, TRAIN, VAL, CLASSES = 128, 6400, 256, 10


class Images(Dataset[Any]):
    def __init__(self, n: int) -> None:
        generator = torch.Generator().manual_seed(n)
        self.x = torch.randn(n, 3, 32, 32, generator=generator)
        self.y = torch.randint(CLASSES, (n,), generator=generator)

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.x[i], self.y[i]


class Data(pl.LightningDataModule):
    def __init__(self) -> None:
        super().__init__()
        self.train, self.val = Images(TRAIN), Images(VAL)

    def train_dataloader(self) -> Any:
        return DataLoader(self.train, BATCH, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(self.val, BATCH)


class SmallCNN(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width, wider in ((3, 16), (16, 32), (32, 64)):
            layers += [nn.Conv2d(width, wider, 3, 2, 1), nn.BatchNorm2d(wider), nn.ReLU()]
        self.net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(1024, CLASSES))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.05, momentum=0.9)


class Clock(pl.Callback):
    """Seconds of every batch of an epoch but its first, which starts the iterator."""

    def __init__(self) -> None:
        self.epochs: list[list[float]] = []
        self._last: float | None = None

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        self.epochs.append([])
        self._last = None

    def on_train_batch_end(self, trainer: Any, module: Any, out: Any, batch: Any, i: int) -> None:
        now = time.process_time()
        if self._last is not None and not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self.epochs[-1].append(now - self._last)
        self._last = now


def fit(make: Callable[[], pl.Callback] | None) -> list[list[float]]:
    """Returns the seconds of every batch in each epoch."""
    pl.seed_everything(0, verbose=False)
    clock = Clock()
    # The clock comes last, so that it times what pruning does in its hooks.
    callbacks: list[Any] = [clock] if make is None else [make(), clock]
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=2,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(SmallCNN(), datamodule=Data())
    return clock.epochs


class Weights(lfp.WeightPruning):
    """Notes how long the pruning itself takes: the criterion, and masks of it."""

    seconds: ClassVar[list[float]] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        start = time.process_time()
        super().on_train_start(trainer, pl_module)
        self.seconds.append(time.process_time() - start)


KINDS: dict[str, Callable[[], pl.Callback] | None] = {
    "plain": None,
    "default": lambda: lfp.DataPruning(0.5, 1),
    "el2n": lambda: lfp.DataPruning(0.5, 1, score=lfp.scores.el2n, keep="hard"),
    "weights": lambda: Weights(lfp.criteria.undecayed, 0.9, start=0, end=0, num_batches=8),
    "plain again": None,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=16)
    rounds = parser.parse_args().rounds
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    fit(None)
    batches: dict[str, list[list[float]]] = {kind: [[], []] for kind in KINDS}
    kinds = list(KINDS)
    for turn in range(rounds):
        for kind in kinds[turn % len(kinds) :] + kinds[: turn % len(kinds)]:
            for epoch, seconds in enumerate(fit(KINDS[kind])):
                batches[kind][epoch] += seconds
    fast = {kind: [quick(epoch) for epoch in epochs] for kind, epochs in batches.items()}
    plain = [(a + b) / 2 for a, b in zip(fast["plain"], fast["plain again"], strict=True)]
    print(f"{platform.machine()}, torch {torch.__version__}, 1 thread, {rounds} rounds")
    print(f"plain Lightning: {plain[0] * 1000:.2f} ms a batch of {BATCH}")
    print(f"warm-up epoch, EL2N recorded / plain  {fast['el2n'][0] / plain[0]:.3f}")
    print(f"warm-up epoch, default / plain        {fast['default'][0] / plain[0]:.3f}")
    print(f"after the swap, a batch / plain       {fast['default'][1] / plain[1]:.3f}")
    for epoch in (0, 1):
        print(
            f"step with masks / plain, epoch {epoch}      {fast['weights'][epoch] / plain[epoch]:.3f}"
        )
    once = statistics.median(Weights.seconds) / plain[0]
    print(f"pruning once (undecayed, 8 batches)   {once:.1f} training steps")
    for epoch in (0, 1):
        noise = fast["plain"][epoch] / fast["plain again"][epoch]
        print(f"noise: plain / plain, epoch {epoch}         {noise:.3f}")


def quick(seconds: list[float]) -> float:
    """Returns the mean of the fastest fifth."""
    return statistics.mean(sorted(seconds)[: len(seconds) // 5])


if __name__ == "__main__":
    main()
