"""Most weights of a trained network are pruned in one shot, the rest fine-tuned: what does each class lose?

    dense network -> WeightPruning(start=0) at 80, 95, 98 % -> a few more epochs -> recalls against the dense one

Criteria differ in which weights they consider unimportant. All start from the same dense network, remove
exactly the same number of weights and fine-tune equally long. Alpha above 1 means that classes which the
dense network recognised badly lost most.

    python examples/07_weight_pruning.py          # about a minute
    python examples/07_weight_pruning.py --fast
"""

from __future__ import annotations

import argparse
import copy

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_fairprune as lfp

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
CRITERIA = {
    "magnitude": lfp.criteria.magnitude,
    "gradient": lfp.criteria.gradient,
    "undecayed": lfp.criteria.undecayed,
    "random": lfp.criteria.random,
}


class Digits(pl.LightningDataModule):
    """Handwritten digits, the training part long-tailed: 80 zeros, a fifth fewer ones, ... 10 nines."""

    def setup(self, stage):
        pixels, labels = load_digits(return_X_y=True)
        images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16
        labels = torch.tensor(labels)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        train, val = order[:900], order[900:]
        number = F.one_hot(labels[train]).cumsum(0).gather(1, labels[train, None]).squeeze(1)
        train = train[number <= 80 * 0.8 ** labels[train]]
        self.train, self.val = (TensorDataset(images[part], labels[part]) for part in (train, val))

    def train_dataloader(self):
        return DataLoader(self.train, batch_size=32, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.val, batch_size=1024)


class Classifier(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(512, 64),
            nn.ReLU(),
            nn.Linear(64, 10),
        )

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return F.cross_entropy(self.net(images), labels)

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)


def dense(data, epochs):
    """Trains the network that all others start from."""
    pl.seed_everything(0, verbose=False)
    model, monitor = Classifier(), lfp.RecallMonitor()
    pl.Trainer(max_epochs=epochs, callbacks=[monitor], **QUIET).fit(model, data)
    return model, monitor.counts["val"]


def sparse(model, data, criterion, sparsity, epochs, seed):
    """Prunes a copy before its first step and fine-tunes it; returns its counts and alpha."""
    pl.seed_everything(seed, verbose=False)
    model = copy.deepcopy(model)
    prune = lfp.WeightPruning(criterion, sparsity, start=0, end=0, seed=seed)
    # The reference is the dense network, validated before the first epoch.
    monitor = lfp.RecallMonitor(reference="fit_start")
    trainer = pl.Trainer(max_epochs=epochs, callbacks=[prune, monitor], **QUIET)
    trainer.fit(model, data)
    return monitor.counts["val"], float(trainer.callback_metrics["val/recall/alpha"])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--fast", action="store_true", help="one sparsity, fewer epochs, one seed")
    fast = parser.parse_args().fast
    data, seeds = Digits(), 1 if fast else 3
    model, counts = dense(data, epochs=8 if fast else 30)
    print("\nsparsity  criterion    mean  worst    gap  alpha")
    print(f"{0:8.0%}  dense       {counts.mean:.3f}  {counts.worst:.3f}  {counts.gap:.3f}")
    for sparsity in (0.98,) if fast else (0.8, 0.95, 0.98):
        for name, criterion in CRITERIA.items():
            runs = [
                sparse(model, data, criterion, sparsity, 2 if fast else 8, seed)
                for seed in range(seeds)
            ]
            mean, worst, gap = (
                sum(getattr(counts, what) for counts, _ in runs) / seeds
                for what in ("mean", "worst", "gap")
            )
            alpha = sum(alpha for _, alpha in runs) / seeds
            print(f"{sparsity:8.0%}  {name:10}  {mean:.3f}  {worst:.3f}  {gap:.3f}  {alpha:5.2f}")


if __name__ == "__main__":
    main()
