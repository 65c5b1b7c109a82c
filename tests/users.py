"""The users of the library: small models and data that know nothing of it."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
torch.set_num_threads(1)

NUM_CLASSES = 4
DIM = 8


class Blobs(Dataset[Any]):
    """Gaussian blobs; the first feature is the index of the sample, scaled down."""

    def __init__(self, n: int = 103, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        centre = torch.randn(NUM_CLASSES, DIM, generator=torch.Generator().manual_seed(123))
        # Long-tailed: class 0 is the most frequent.
        share = torch.tensor([0.4, 0.3, 0.2, 0.1])
        self.y = torch.multinomial(share, n, replacement=True, generator=generator)
        self.x = 0.6 * centre[self.y] + torch.randn(n, DIM, generator=generator)
        self.x[:, 0] = torch.arange(n) / 1000

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return self.x[i], int(self.y[i])


class Data(pl.LightningDataModule):
    def __init__(self, n: int = 103, batch_size: int = 10, workers: int = 0, **loader: Any) -> None:
        super().__init__()
        self.n, self.batch_size, self.workers = n, batch_size, workers
        self.loader = {"shuffle": True, "persistent_workers": workers > 0} | loader

    def setup(self, stage: str) -> None:
        self.train, self.val = Blobs(self.n), Blobs(60, seed=1)

    def train_dataloader(self) -> Any:
        return DataLoader(
            self.train, batch_size=self.batch_size, num_workers=self.workers, **self.loader
        )

    def val_dataloader(self) -> Any:
        return DataLoader(self.val, batch_size=20)

    def test_dataloader(self) -> Any:
        return DataLoader(self.val, batch_size=20)


class Model(pl.LightningModule):
    def __init__(self, lr: float = 0.1) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(DIM, 16), nn.ReLU(), nn.Linear(16, NUM_CLASSES))
        self.lr = lr

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = only(batch)
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", F.cross_entropy(self(x), y), sync_dist=True)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("test_loss", F.cross_entropy(self(x), y))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), self.lr, momentum=0.9)


class WithLoss(Model):
    """A model whose loss is a module, as ClassWeighting needs it."""

    def __init__(self) -> None:
        super().__init__()
        self.loss = nn.CrossEntropyLoss()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        return self.loss(self(x), y)

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return self(batch[0])


def only(batch: Any) -> Any:
    """The batch in a dictionary or list of one, as of one loader in such a collection."""
    while len(batch) == 1 and not isinstance(batch, torch.Tensor):
        (batch,) = batch.values() if isinstance(batch, dict) else batch
    return batch


class Probe(pl.Callback):
    """Notes, for every epoch, which samples the training steps were given."""

    def __init__(self) -> None:
        self.samples: dict[int, list[int]] = {}
        self.batches: dict[int, int] = {}
        self.planned: dict[int, int] = {}
        self.validations: dict[int, int] = {}

    def on_train_batch_end(self, trainer: Any, module: Any, out: Any, batch: Any, i: int) -> None:
        epoch = trainer.current_epoch
        batch = only(batch)
        x = batch[0] if not isinstance(batch, dict) else batch["x"]
        self.samples.setdefault(epoch, []).extend((x[:, 0] * 1000).round().long().tolist())
        self.batches[epoch] = self.batches.get(epoch, 0) + 1
        self.planned[epoch] = trainer.num_training_batches

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        if not trainer.sanity_checking:
            epoch = trainer.current_epoch
            self.validations[epoch] = self.validations.get(epoch, 0) + 1


def plain(value: Any) -> Any:
    """What a callback found, as values that can be compared."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
    public = [name for name in getattr(value, "__dict__", {}) if not name.startswith("_")]
    names = [*slots, *public]
    return {name: plain(getattr(value, name)) for name in names} if names else value


def trainer(**options: Any) -> pl.Trainer:
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 4,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    with warnings.catch_warnings():
        return pl.Trainer(**(defaults | options))
