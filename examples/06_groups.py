"""A spurious correlation: group quotas keep the samples that contradict it.

Handwritten digits, low (0-4) or high (5-9), on a dark or a bright ground. In the training data 93 % of the
low digits are on dark ground and 93 % of the high ones on bright ground, as with land and water birds in
Waterbirds; in validation and test data the ground is independent of the label. A network that relies on the
ground does well on average and badly on the two groups that contradict it. `group_by` sets quotas for the
four groups, label x ground, and RecallMonitor tracks their recalls.

    python examples/06_groups.py          # about 40 seconds
    python examples/06_groups.py --fast
"""

from __future__ import annotations

import argparse
import logging

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_fairprune as lfp

GROUPS = ("low on dark", "low on bright", "high on dark", "high on bright")
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}


class Grounds(pl.LightningDataModule):
    """Batches (image, label, group); group = 2 * label + ground."""

    def setup(self, stage):
        pixels, digits = load_digits(return_X_y=True)
        random = torch.Generator().manual_seed(0)
        order = torch.randperm(len(digits), generator=random)
        images = torch.tensor(pixels, dtype=torch.float32)[order] / 16
        labels = (torch.tensor(digits)[order] >= 5).long()
        train = torch.arange(len(labels)) < 900
        agree = torch.rand(len(labels), generator=random) < torch.where(train, 0.93, 0.5)
        ground = torch.where(agree, labels, 1 - labels)
        images = images + ground[:, None] * 0.6  # the ground brightens every pixel
        group = 2 * labels + ground
        self.train, self.val, self.test = (
            TensorDataset(images[part], labels[part], group[part])
            for part in (slice(0, 900), slice(900, 1300), slice(1300, None))
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
        self.net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 2))

    def training_step(self, batch, batch_idx):
        images, labels, _ = batch
        return F.cross_entropy(self.net(images), labels)

    def validation_step(self, batch, batch_idx):
        self.training_step(batch, batch_idx)

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)


def group_counts(seed, steps, **prune):
    """Trains for a fixed number of steps and returns the test counts of the groups."""
    pl.seed_everything(seed, verbose=False)
    model, data = Classifier(), Grounds()
    track = lfp.RecallMonitor(group_by=2, group_names=GROUPS)
    callbacks = [track]
    if prune:
        callbacks.append(lfp.DataPruning(0.3, 5, group_by=2, seed=seed, **prune))
    trainer = pl.Trainer(max_steps=steps, max_epochs=-1, callbacks=callbacks, **QUIET)
    trainer.fit(model, data)
    trainer.test(model, data, verbose=False)
    return track.counts["test/groups"]


METHODS = {
    "all the data": {},
    "30 %, random": {"quota": lfp.quotas.proportional},
    "30 %, equal groups": {"quota": lfp.quotas.balanced},
    "30 %, DRoP": {"quota": lfp.quotas.drop},
    "30 %, Minimax": {"quota": lfp.quotas.Minimax(leak=0.0, worst=0.1)},  # a group has 3 %
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fast", action="store_true", help="one seed, short training")
    fast = parser.parse_args().fast
    print(f"{'recall':20}" + "".join(f"{name:>16}" for name in (*GROUPS, "worst group")))
    for method, prune in METHODS.items():
        seeds = range(1 if fast else 3)
        counts = [group_counts(seed, 200 if fast else 900, **prune) for seed in seeds]
        recall = torch.stack([c.recall for c in counts]).mean(0).tolist()
        worst = sum(c.worst for c in counts) / len(counts)
        print(f"{method:20}" + "".join(f"{value:16.3f}" for value in (*recall, worst)))


if __name__ == "__main__":
    main()
