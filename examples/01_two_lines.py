"""Two lines in training code that already works: prune the data, watch the weakest class.

python examples/01_two_lines.py          # about 15 seconds
python examples/01_two_lines.py --fast
"""

from __future__ import annotations

import argparse

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

import lightning_fairprune as lfp

# ------------------------------------------------------------------ your code, unchanged


class Digits(pl.LightningDataModule):
    def setup(self, stage):
        pixels, labels = load_digits(return_X_y=True)
        images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16
        data = TensorDataset(images, torch.tensor(labels))
        # The recalls on `val` set the quotas, so final numbers come from `test`.
        split = torch.Generator().manual_seed(0)
        self.train, self.val, self.test = random_split(data, [0.5, 0.25, 0.25], split)

    def train_dataloader(self):
        return DataLoader(self.train, batch_size=32, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.val, batch_size=256)

    def test_dataloader(self):
        return DataLoader(self.test, batch_size=256)


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


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--fast", action="store_true", help="fewer epochs")
    epochs = 8 if parser.parse_args().fast else 40
    pl.seed_everything(0, verbose=False)

    # ----------------------------------------------------------------- the two lines
    # Keep 30 % after a quarter of training; log val/recall/worst, val/recall/gap, ...
    prune = lfp.DataPruning(density=0.3, warmup_epochs=0.25)
    track = lfp.RecallMonitor()

    # Save the model whose weakest class has the highest recall.
    best = ModelCheckpoint(monitor="val/recall/worst", mode="max")
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[prune, track, best],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = Digits()
    trainer.fit(Classifier(), data)
    trainer.test(Classifier(), data, ckpt_path=best.best_model_path, verbose=False)

    test = track.counts["test"]
    print("\ndigit  kept  of    test recall")
    rows = zip(prune.quota, prune.selection.sizes, test.recall, strict=True)
    for k, (kept, size, recall) in enumerate(rows):
        print(f"{k:5}  {kept:4}  {size:3}   {recall:.3f}")
    print(f"\nmean {test.mean:.3f}   worst {test.worst:.3f}   gap {test.gap:.3f}")


if __name__ == "__main__":
    main()
