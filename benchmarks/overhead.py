"""What pruning costs a training step: the same fit with and without, in turn, in one process.

    python benchmarks/overhead.py [--rounds 7]

Each round trains a small CNN (batch 128, CPU, one thread) once with plain Lightning, once with the
default DataPruning, once with EL2N recorded, and once more plain. Printed is the median over rounds
of the time of a batch relative to the plain fit of the same round; the second plain fit shows the
noise. A batch is timed from the end of the one before it, so fetching counts.
"""

from __future__ import annotations

import argparse
import logging
import platform
import statistics
import time
import warnings
from typing import Any

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
        now = time.perf_counter()
        if self._last is not None and not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self.epochs[-1].append(now - self._last)
        self._last = now


def fit(prune: dict[str, Any] | None) -> list[float]:
    """Returns the median seconds of a batch in each epoch."""
    pl.seed_everything(0, verbose=False)
    clock = Clock()
    callbacks: list[Any] = [clock]
    if prune is not None:  # the clock comes last, so that it times what pruning does in its hooks
        callbacks = [lfp.DataPruning(0.5, 1, **prune), clock]
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
    return [statistics.median(epoch) for epoch in clock.epochs]


KINDS: dict[str, dict[str, Any] | None] = {
    "plain": None,
    "default": {},
    "el2n": {"score": lfp.scores.el2n, "keep": "hard"},
    "plain again": None,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    fit(None)
    ratios: dict[str, list[float]] = {}
    for _ in range(rounds):
        seconds = {kind: fit(prune) for kind, prune in KINDS.items()}
        plain = [(a + b) / 2 for a, b in zip(seconds["plain"], seconds["plain again"], strict=True)]
        rows = {
            "warm-up epoch, EL2N recorded": seconds["el2n"][0] / plain[0],
            "warm-up epoch, default": seconds["default"][0] / plain[0],
            "after the swap, per batch": seconds["default"][1] / plain[1],
            "noise: plain / plain": seconds["plain"][0] / seconds["plain again"][0],
        }
        for name, ratio in rows.items():
            ratios.setdefault(name, []).append(ratio)
    print(f"{platform.machine()}, torch {torch.__version__}, 1 thread, {rounds} rounds")
    print(f"plain Lightning: {plain[0] * 1000:.2f} ms a batch of {BATCH}")
    for name, values in ratios.items():
        low, middle, high = min(values), statistics.median(values), max(values)
        print(f"{name:32s} {middle:.3f}   [{low:.3f}, {high:.3f}]")


if __name__ == "__main__":
    main()
