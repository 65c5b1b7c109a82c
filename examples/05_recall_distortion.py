"""Which classes lose by magnitude pruning: intensification ratios of a small network over six seeds.

Every seed trains a network on handwritten digits. Then torch's own pruning removes the smallest weights
until one in two, four, ... is left, and the network is fine-tuned for two epochs. The class recalls on test
images are compared with those of the dense network. Alpha above 1: the recalls have moved apart.

    python examples/05_recall_distortion.py          # about 20 seconds
    python examples/05_recall_distortion.py --fast
"""

from __future__ import annotations

import argparse
import copy

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.utils import prune
from torch.utils.data import DataLoader, TensorDataset

import lightning_fairprune as lfp

RATIOS = (2, 4, 8, 16)
QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Classifier(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Flatten(),
            nn.Linear(64, 64),
            nn.ReLU(),
            nn.Linear(64, 64),
            nn.ReLU(),
            nn.Linear(64, 10),
        )

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return F.cross_entropy(self.net(images), labels)

    def test_step(self, batch, batch_idx):
        self.training_step(batch, batch_idx)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 2e-3)


def digits():
    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32) / 16
    labels = torch.tensor(labels)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, test = order[:600], order[600:]
    return (
        DataLoader(TensorDataset(images[train], labels[train]), batch_size=32, shuffle=True),
        DataLoader(TensorDataset(images[test], labels[test]), batch_size=2048),
    )


def test_counts(model, loader):
    monitor = lfp.RecallMonitor()
    pl.Trainer(callbacks=[monitor], **QUIET).test(model, loader, verbose=False)
    return monitor.counts["test"]


def pruned(model, ratio, train):
    model = copy.deepcopy(model)
    layers = [(layer, "weight") for layer in model.modules() if isinstance(layer, nn.Linear)]
    prune.global_unstructured(layers, prune.L1Unstructured, amount=1 - 1 / ratio)
    pl.Trainer(max_epochs=2, **QUIET).fit(model, train)
    return model


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fast", action="store_true", help="two seeds, short training")
    fast = parser.parse_args().fast
    train, test = digits()
    before, after = [], {ratio: [] for ratio in RATIOS}
    for seed in range(2 if fast else 6):
        pl.seed_everything(seed, verbose=False)
        model = Classifier()
        pl.Trainer(max_epochs=2 if fast else 10, **QUIET).fit(model, train)
        before.append(test_counts(model, test))
        for ratio in RATIOS:
            after[ratio].append(test_counts(pruned(model, ratio, train), test))

    def row(name, counts, alpha=""):
        accuracy = sum(c.accuracy for c in counts) / len(counts)
        worst = sum(c.worst for c in counts) / len(counts)
        print(f"{name:>12}  {accuracy:8.3f}  {worst:11.3f}  {alpha}")

    print("weights left  accuracy  worst class  mean alpha, 99 % interval over the seeds")
    row("all", before)
    for ratio in RATIOS:
        alpha = lfp.statistics.intensification_ratio(
            torch.stack([c.recall for c in before]),
            torch.stack([c.recall for c in after[ratio]]),
            accuracy_before=torch.tensor([c.accuracy for c in before]),
            accuracy_after=torch.tensor([c.accuracy for c in after[ratio]]),
        )
        mean = lfp.statistics.summarise(alpha)
        text = f"{mean.mean:.2f} ({mean.low:.2f} to {mean.high:.2f}) {mean.label} 1"
        row(f"1 in {ratio}", after[ratio], text)


if __name__ == "__main__":
    main()
