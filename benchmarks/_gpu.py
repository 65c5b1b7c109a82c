"""What recording costs where the host runs ahead of the device: waits per step, and time per step."""

from __future__ import annotations

import itertools
import time
import warnings
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from _paired import QUIET
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import lightning_fairprune as lfp
from lightning_fairprune.experiments.models import ResNet

CLASSES, DISTINCT = 1000, 512


class _Numbers(Dataset[int]):
    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> int:
        return i


class ResNet18(pl.LightningModule):
    """Trains on images that lie on the device already, so that loading hides nothing."""

    def __init__(self, device: str, batch: int, steps: int, pixels: int) -> None:
        super().__init__()
        self.net, self.batch, self.steps = ResNet(18, CLASSES), batch, steps
        self.pictures = torch.randn(DISTINCT, 3, pixels, pixels, device=device)
        self.labels = torch.randint(CLASSES, (batch * steps,), device=device)

    def train_dataloader(self) -> Any:
        numbers = _Numbers(self.batch * self.steps)
        return DataLoader(numbers, self.batch, shuffle=True, collate_fn=self.collate)

    def collate(self, numbers: list[int]) -> tuple[Tensor, Tensor]:
        where = torch.tensor(numbers)
        if self.pictures.is_cuda:
            where = where.pin_memory().to(self.pictures.device, non_blocking=True)
        return self.pictures.index_select(0, where % DISTINCT), self.labels.index_select(0, where)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.01, momentum=0.9)


class _Epochs(pl.Callback):
    """Seconds of every epoch, from an idle device to an idle device."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._begin = 0.0

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        _wait()
        self._begin = time.perf_counter()

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        _wait()
        self.seconds.append(time.perf_counter() - self._begin)


class _Waits(pl.Callback):
    """Has torch warn of every wait for the device from the fourth step of the second epoch on.

    The very first step of a fit looks twice at the loss, and waits for that.
    """

    def __init__(self) -> None:
        self.steps = 0

    def on_train_batch_end(self, trainer: Any, module: Any, out: Any, batch: Any, i: int) -> None:
        on = trainer.current_epoch == 1 and 2 <= i < trainer.num_training_batches - 1
        self.steps += on
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("warn" if on else "default")


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _fit(model: ResNet18, record: bool, clock: pl.Callback) -> None:
    prune = lfp.DataPruning(
        0.5, 3, score=lfp.scores.el2n, keep="hard", quota=lfp.quotas.proportional
    )
    pl.Trainer(
        accelerator="gpu" if model.pictures.is_cuda else "cpu",
        devices=1,
        precision="bf16-mixed",
        max_epochs=4 if record else 3,
        callbacks=[prune, clock] if record else [clock],
        **QUIET,
    ).fit(model)


def epochs(
    *, device: str = "cuda", rounds: int = 8, batch: int = 256, steps: int = 64, pixels: int = 224
) -> dict[str, list[float]]:
    """Returns the seconds of epochs of ResNet-18 steps in bfloat16, by kind; those of a fit's first are left out."""
    kinds = {"plain": False, "el2n": True, "plain again": False}
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for turn in range(rounds):
        for kind in itertools.islice(itertools.cycle(kinds), turn, turn + len(kinds)):
            clock = _Epochs()
            _fit(ResNet18(device, batch, steps, pixels), kinds[kind], clock)
            seconds[kind] += clock.seconds[1:3]
    return seconds


def waits(
    *, device: str = "cuda", batch: int = 64, steps: int = 40, pixels: int = 64
) -> dict[str, float]:
    """Returns how often the host waited for the device in a training step, by kind."""
    found = {}
    for kind, record in (("plain", False), ("el2n", True)):
        clock = _Waits()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            _fit(ResNet18(device, batch, steps, pixels), record, clock)
        found[kind] = (
            sum("synchronizing CUDA" in str(warning.message) for warning in said) / clock.steps
        )
    return found
