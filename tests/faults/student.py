"""The training that is pruned and replayed: its model, its data, and the diary of what was done to them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
import torch
from clock import Clock
from faults.design import Setting
from torch import nn
from torch.utils.data import DataLoader, Dataset, default_collate

import lightning_fairprune as lfp

NUM_SAMPLES, NUM_CLASSES, DIM = 62, 4, 8


@dataclass
class Epoch:
    """What a training loader served in an epoch, and the length that it had."""

    length: int
    pruned: bool
    batches: list[list[int]] = field(default_factory=list)


class Diary:
    """What happened in a fit, the fits of tuners in it included, and the clock that it went by."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.epochs: list[Epoch] = []
        self.events: list[tuple[Any, ...]] = []
        self.planned: list[int] = []

    def __deepcopy__(self, memo: Any) -> Diary:
        return self  # of one fit, however often its model is copied

    def note(self, *what: Any) -> None:
        self.events.append(what)


class Samples(Dataset[Any]):
    """Blobs of four classes, each sample with its index."""

    def __init__(self, size: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        share = torch.tensor([0.4, 0.3, 0.2, 0.1])
        self.targets = torch.multinomial(share, size, replacement=True, generator=generator)
        centre = torch.randn(NUM_CLASSES, DIM, generator=torch.Generator().manual_seed(9))
        self.x = centre[self.targets] + torch.randn(size, DIM, generator=generator)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, i: int) -> Any:
        return self.x[i], int(self.targets[i]), i


class Replayed:
    """A loader that serves the batches of another fit, and has the length that the other had."""

    def __init__(self, script: Diary, diary: Diary) -> None:
        self._script, self._diary, self.dataset = script, diary, Samples(NUM_SAMPLES, 0)
        self.measure()

    def measure(self) -> None:
        """Takes on the length of the next epoch."""
        self._length = self._script.epochs[len(self._diary.epochs)].length

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Any]:
        # A DataLoader draws the seed of its workers. Lightning also tries whether other loaders can be iterated.
        if sys._getframe(1).f_code.co_name != "_check_dataloader_iterable":
            torch.empty((), dtype=torch.int64).random_()
        return self._batches()

    def _batches(self) -> Iterator[Any]:
        while True:
            epoch = self._script.epochs[len(self._diary.epochs) - 1]
            done = len(self._diary.epochs[-1].batches)
            if done == len(epoch.batches):
                return
            yield default_collate([self.dataset[i] for i in epoch.batches[done]])


class Loaders:
    """The loaders of the training; of the script, if there is one."""

    def __init__(self, diary: Diary, script: Diary | None) -> None:
        self._diary, self._script = diary, script

    def train(self, batch_size: int) -> Any:
        if self._script is not None:
            return Replayed(self._script, self._diary)
        return DataLoader(Samples(NUM_SAMPLES, 0), batch_size, shuffle=True)

    def val(self) -> Any:
        self._diary.note("validation loader")
        return DataLoader(Samples(20, 1), 5)


class Data(pl.LightningDataModule):
    def __init__(self, loaders: Loaders) -> None:
        super().__init__()
        self.loaders, self.batch_size = loaders, 8

    def train_dataloader(self) -> Any:
        return self.loaders.train(self.batch_size)

    def val_dataloader(self) -> Any:
        return self.loaders.val()


class Student(pl.LightningModule):
    """A small classifier with everything that a restart and an average must mind: buffers, and dropout."""

    def __init__(self, setting: Setting, diary: Diary, script: Diary | None) -> None:
        super().__init__()
        parts = (nn.Linear(DIM, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.1))
        self.backbone, self.head = nn.Sequential(*parts), nn.Linear(12, NUM_CLASSES)
        self.criterion = nn.CrossEntropyLoss()
        self.optimisation, self.lr = setting["optimisation"], 0.05
        self.automatic_optimization = "by hand" not in self.optimisation
        self.restarts = setting["after"] == "restart"
        self.diary, self.script = diary, script

    def forward(self, x: Any) -> Any:
        return self.head(self.backbone(x))

    def on_train_epoch_start(self) -> None:
        loader = self.trainer.fit_loop._combined_loader.flattened[0]
        prunes = [c for c in self.trainer.callbacks if isinstance(c, lfp.DataPruning)]
        self.diary.epochs.append(Epoch(len(loader), any(c.pruned for c in prunes)))
        batches = self.trainer.num_training_batches
        self.diary.note("epoch", self.current_epoch, batches, self.global_step)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.diary.epochs[-1].batches.append(batch[2].tolist())
        rates = [group["lr"] for it in self.trainer.optimizers for group in it.param_groups]
        where = self.current_epoch, batch_idx, self.global_step
        self.diary.note("batch", *where, batch[2].tolist(), rates)
        self.diary.clock.now += 1

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y, _ = batch
        loss = self.criterion(self(x), y)
        self.log("train_loss", loss.float(), on_step=True, on_epoch=True)
        self.diary.note("loss", loss.item())
        if self.optimisation == "two by hand":
            self._step_by_hand(loss, self.optimizers())
        elif self.optimisation == "accumulated by hand":
            ready = batch_idx % 2 == 1 or self.trainer.is_last_batch
            self._step_by_hand(loss / 2, [self.optimizers()], ready=ready)
        return loss

    def _step_by_hand(self, loss: Any, optimizers: Any, *, ready: bool = True) -> None:
        self.manual_backward(loss)
        for optimizer in optimizers if ready else ():
            optimizer.step()
            optimizer.zero_grad()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y, _ = batch
        self.log("val_loss", self.criterion(self(x), y).float(), sync_dist=True)
        self.diary.clock.now += 0.25

    def on_validation_start(self) -> None:
        self._note_validation("validation starts")

    def on_validation_end(self) -> None:
        self._note_validation("validation ends")

    def _note_validation(self, what: str) -> None:
        loop = self.trainer.fit_loop.epoch_loop
        sanity = self.trainer.sanity_checking
        self.diary.note(what, sanity, self.current_epoch, self.global_step, loop.batch_idx)

    def _planned(self) -> int:
        """Returns the steps of a schedule; without the callback those that were planned with it."""
        if self.script is None:
            return lfp.planned_stepping_batches(self.trainer)
        if self.trainer.max_epochs != -1 or self.restarts:
            self.trainer.fit_loop.setup_data()  # as the estimate of the Trainer does
        return self.script.planned[len(self.diary.planned)]

    def configure_optimizers(self) -> Any:
        trained = [p for p in self.parameters() if p.requires_grad]
        if self.optimisation == "lbfgs":
            return torch.optim.LBFGS(trained, 0.01, max_iter=2)
        if self.optimisation == "two by hand":
            halves = self.backbone.parameters(), self.head.parameters()
            return [torch.optim.SGD(half, self.lr, momentum=0.9) for half in halves]
        optimizer = torch.optim.SGD(trained, self.lr, momentum=0.9)
        if self.optimisation == "planned":
            total = self._planned()
            self.diary.planned.append(total)
            falling = torch.optim.lr_scheduler.LambdaLR(
                optimizer, lambda step: max(0.0, 1 - step / total)
            )
            return [optimizer], [{"scheduler": falling, "interval": "step"}]
        if self.optimisation == "epoch":
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.8)]
        if self.optimisation == "plateau":
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
            config = {"scheduler": plateau, "monitor": "train_loss_epoch", "interval": "epoch"}
            return {"optimizer": optimizer, "lr_scheduler": config}
        return optimizer
