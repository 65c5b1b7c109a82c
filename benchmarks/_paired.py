"""Fits that take turns batch by batch in one process, and the ratio of what they cost.

Each fit runs in a thread of its own, but only the one that holds the turn runs; it hands it on after every batch.
Whatever slows the machine down for longer than a batch slows all of them alike. The processor time of a thread is
counted, not the time of the wall, so that other programs count little.
"""

from __future__ import annotations

import logging
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_fairprune.experiments.models import SmallCNN

BATCH, CLASSES = 128, 10
QUIET = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}


class Images(Dataset[Any]):
    """Random images of 3 x 32 x 32 with random labels."""

    def __init__(self, n: int) -> None:
        generator = torch.Generator().manual_seed(n)
        self.x = torch.randn(n, 3, 32, 32, generator=generator)
        self.y = torch.randint(CLASSES, (n,), generator=generator)

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.x[i], self.y[i]


class Data(pl.LightningDataModule):
    def __init__(self, train: Dataset[Any], val: Dataset[Any]) -> None:
        super().__init__()
        self.train, self.val = train, val

    def train_dataloader(self) -> Any:
        return DataLoader(self.train, BATCH, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(self.val, BATCH)


class Model(pl.LightningModule):
    """The small CNN of `experiments`, 25,354 weights."""

    def __init__(self) -> None:
        super().__init__()
        self.net = SmallCNN()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.05, momentum=0.9)


Fit = dict[tuple[str, int], list[float]]


class Ring:
    """Hands one turn around among threads; those that have left are passed over."""

    def __init__(self, members: int) -> None:
        self._turn, self._left = 0, [False] * members
        self._changed = threading.Condition()

    def wait(self, member: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._turn == member)

    def hand_on(self, member: int) -> None:
        with self._changed:
            count = len(self._left)
            others = [(member + step) % count for step in range(1, count + 1)]
            self._turn = next((other for other in others if not self._left[other]), -1)
            self._changed.notify_all()

    def leave(self, member: int) -> None:
        self._left[member] = True
        self.hand_on(member)


class Slices(pl.Callback):
    """Processor seconds of a fit, cut after every batch, by stage ("train", "val") and epoch.

    The slice of a batch holds whatever the thread did since the one before: fetching, hooks of all callbacks. The
    first of an epoch holds its start, and what its end costs are slices of their own: the sum leaves out nothing.
    """

    def __init__(self, ring: Ring, member: int) -> None:
        self.seconds: dict[tuple[str, int], list[float]] = {}
        self._ring, self._member, self._last = ring, member, 0.0

    def begin(self) -> None:
        self._last = time.thread_time()

    def cut(self, trainer: pl.Trainer, stage: str) -> None:
        now = time.thread_time()
        self.seconds.setdefault((stage, trainer.current_epoch), []).append(now - self._last)
        self._last = time.thread_time()

    def hand_on(self) -> None:
        self._ring.hand_on(self._member)
        self._ring.wait(self._member)
        self._last = time.thread_time()

    def on_train_batch_end(self, trainer: Any, module: Any, out: Any, batch: Any, i: int) -> None:
        self.cut(trainer, "train")
        self.hand_on()

    def on_validation_batch_end(
        self, trainer: Any, module: Any, out: Any, batch: Any, i: int, loader: int = 0
    ) -> None:
        self.cut(trainer, "val")
        self.hand_on()

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        self.cut(trainer, "val")

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        self.cut(trainer, "train")


class _Opening(pl.Callback):
    """The first of all callbacks: what came before an epoch or a validation is not its own."""

    def __init__(self, slices: Slices) -> None:
        self._slices = slices

    def on_train_start(self, trainer: Any, module: Any) -> None:
        self._slices.begin()

    def on_validation_start(self, trainer: Any, module: Any) -> None:
        self._slices.cut(trainer, "train")


def side_by_side(
    kinds: Mapping[str, Callable[[], dict[str, Any]]], data: Data, *, turn: int
) -> dict[str, Fit]:
    """Runs one fit of each kind, batch by batch in turn, and returns its seconds by stage and epoch.

    Args:
        kinds: what makes the arguments of a kind's Trainer, by its name.
        data: what all of them are trained on.
        turn: which kind comes first.
    """
    names = list(kinds)
    names = names[turn % len(names) :] + names[: turn % len(names)]
    ring, errors = Ring(len(names)), list[BaseException]()
    clocks = {name: Slices(ring, member) for member, name in enumerate(names)}

    def run(member: int, name: str) -> None:
        torch.set_num_threads(1)
        ring.wait(member)
        try:
            fit(data, clocks[name], **kinds[name]())
        except BaseException as error:
            errors.append(error)
        finally:
            ring.leave(member)

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(names)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return {name: clocks[name].seconds for name in kinds}


def fit(data: Data, clock: Slices, **arguments: Any) -> None:
    """Trains a Model with the clock around all callbacks."""
    settings: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "max_epochs": 2, **QUIET}
    callbacks = [_Opening(clock), *arguments.pop("callbacks", []), clock]
    trainer = pl.Trainer(**{**settings, **arguments, "callbacks": callbacks})
    # A data module each: pruning takes over its train_dataloader for the time of a fit.
    trainer.fit(Model(), datamodule=Data(data.train, data.val))


def hush() -> None:
    """One thread, and no word from Lightning in between."""
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)


@dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio of two costs.

    Args:
        value: the ratio.
        low: end of its 95 % bootstrap interval.
        high: the other end.
    """

    value: float
    low: float
    high: float

    @property
    def noise(self) -> float:
        """How far from 1 a ratio of equals could have come out."""
        return max(abs(self.low - 1), abs(self.high - 1))


def by_position(costs: Tensor, base: Tensor, *, draws: int = 1000) -> Ratio:
    """Returns the ratio of two epochs whose every slice is the lower quartile of itself over the rounds.

    What else the machine does only ever adds, and seldom to the same slice of most rounds; what a slice costs by
    itself, such as the end of an epoch, it costs in every round. The interval comes from drawing rounds, the
    same ones for both.

    Args:
        costs: [rounds, slices].
        base: the same of what it is compared with.
        draws: of the bootstrap.
    """

    def total(slices: Tensor) -> Tensor:
        return slices.quantile(0.25, dim=0).sum()

    rounds = len(costs)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(rounds, (draws, rounds), generator=generator)
    ratios = torch.stack([total(costs[d]) / total(base[d]) for d in drawn])
    low, high = ratios.quantile(torch.tensor([0.025, 0.975], dtype=ratios.dtype)).tolist()
    return Ratio(float(total(costs) / total(base)), low, high)


def paired(costs: Sequence[float], base: Sequence[float], *, draws: int = 2000) -> Ratio:
    """Returns the median of `costs[i] / base[i]` and its bootstrap interval."""
    ratios = torch.tensor(costs, dtype=torch.float64) / torch.tensor(base, dtype=torch.float64)
    return spread(ratios, draws=draws)


def spread(values: Tensor, *, draws: int = 2000) -> Ratio:
    """Returns the median of a few values and its bootstrap interval."""
    generator = torch.Generator().manual_seed(0)
    drawn = values[torch.randint(len(values), (draws, len(values)), generator=generator)]
    middle = drawn.quantile(0.5, dim=1)
    low, high = middle.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Ratio(float(values.quantile(0.5)), low, high)
