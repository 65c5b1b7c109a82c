"""A model and a data module without any pruning code; the YAML files in this folder add it."""

from __future__ import annotations

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split


class Digits(pl.LightningDataModule):
    def __init__(self, batch_size: int = 32):
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage):
        pixels, labels = load_digits(return_X_y=True)
        images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16
        data = TensorDataset(images, torch.tensor(labels))
        split = torch.Generator().manual_seed(0)
        self.train, self.val, self.test = random_split(data, [0.5, 0.25, 0.25], split)

    def train_dataloader(self):
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.val, 256)

    def test_dataloader(self):
        return DataLoader(self.test, 256)


class Classifier(pl.LightningModule):
    def __init__(self, width: int = 16, learning_rate: float = 2e-3):
        super().__init__()
        self.learning_rate = learning_rate
        self.net = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(16 * width, 10),
        )

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return F.cross_entropy(self.net(images), labels)

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.training_step(batch, batch_idx))

    def test_step(self, batch, batch_idx):
        self.log("test/loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), self.learning_rate)


class PrintTable(pl.Callback):
    """Prints the recall of every class after the last validation, as logged by RecallMonitor."""

    def on_fit_end(self, trainer, pl_module):
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        classes = sorted(name for name in logged if name.startswith("val/recall/class/"))
        print("\ndigit  val recall")
        for name in classes:
            print(f"{name.rsplit('/', 1)[1]:>5}  {logged[name]:.3f}")
        print(f"worst  {logged['val/recall/worst']:.3f}\n  gap  {logged['val/recall/gap']:.3f}")
