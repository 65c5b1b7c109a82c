"""Two phases: a query model selects samples, and a final model is trained on them from scratch.

    query model on all the data -> Selection, saved to a file -> final model on the selection

The final model is trained on DRoP selections and, for comparison, on as many random samples; three of
each, because one subset of a hundred images is too noisy.

    python examples/04_two_phase.py          # about 30 seconds
    python examples/04_two_phase.py --fast
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_fairprune as lfp

DENSITY = 0.3
QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Digits(pl.LightningDataModule):
    """Handwritten digits, the training part long-tailed: 80 zeros, a fifth fewer ones, ... 10 nines."""

    def setup(self, stage):
        pixels, labels = load_digits(return_X_y=True)
        images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16
        labels = torch.tensor(labels)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        train, val, test = order.split([900, 400, 497])
        number = F.one_hot(labels[train]).cumsum(0).gather(1, labels[train, None]).squeeze(1)
        train = train[number <= 80 * 0.8 ** labels[train]]
        # The quotas read the recalls of `val`, so the table comes from `test`.
        self.train, self.val, self.test = (
            TensorDataset(images[part], labels[part]) for part in (train, val, test)
        )

    def train_dataloader(self):
        return DataLoader(self.train, batch_size=32, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.val, batch_size=512)

    def test_dataloader(self):
        return DataLoader(self.test, batch_size=512)


class Classifier(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(256, 10),
        )

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return F.cross_entropy(self.net(images), labels)

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.training_step(batch, batch_idx))

    def test_step(self, batch, batch_idx):
        self.log("test/loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


def query(epochs):
    """Trains a model on all the data; returns the labels and how well it recognises each class."""
    data, model, monitor = Digits(), Classifier(), lfp.RecallMonitor()
    pl.seed_everything(0, verbose=False)
    trainer = pl.Trainer(max_epochs=epochs, callbacks=[monitor], **QUIET)
    trainer.fit(model, data)
    return data.train.tensors[1], monitor.counts["val"].recall


def final(selection, epochs, seed):
    """Returns the test counts of a new model that is trained on the selection alone."""
    pl.seed_everything(seed, verbose=False)
    # The wrapper takes a Selection or the path of a saved one.
    data, model, monitor = (
        lfp.FairPruneDataModule(Digits(), selection),
        Classifier(),
        lfp.RecallMonitor(),
    )
    trainer = pl.Trainer(max_epochs=epochs, callbacks=[monitor], **QUIET)
    trainer.fit(model, data)
    trainer.test(model, data, verbose=False)
    return monitor.counts["test"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--fast", action="store_true", help="fewer epochs")
    fast = parser.parse_args().fast
    folder = Path(tempfile.mkdtemp(prefix="fairprune-"))

    target, recall = query(epochs=10 if fast else 20)
    budget = round(DENSITY * len(target))
    # Without a floor, a class with recall 1 would keep no samples.
    quota = lfp.quotas.drop(torch.bincount(target), recall, budget, floor=budget // 20)
    print("\nfinal model on  samples   mean  worst    gap")
    # An int is a budget without quotas: class sizes are random.
    for name, wanted in (("random", budget), ("drop", quota)):
        results = []
        for seed in range(1 if fast else 3):
            path = folder / f"{name}_{seed}.safetensors"
            lfp.select(target, wanted, seed=seed).save(path)
            results.append(final(str(path), epochs=20 if fast else 80, seed=seed))
        mean, worst, gap = (
            sum(getattr(counts, what) for counts in results) / len(results)
            for what in ("mean", "worst", "gap")
        )
        print(f"{name:14}  {budget:7}  {mean:.3f}  {worst:.3f}  {gap:.3f}")
    print(f"\nselections: {folder}")


if __name__ == "__main__":
    main()
