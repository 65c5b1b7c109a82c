"""A score of your own: any function from recorded signals to one number per sample, higher = harder.

It is used twice: by DataPruning inside one fit, and afterwards on the saved record, without a Trainer.

    python examples/02_your_own_score.py          # about 15 seconds
    python examples/02_your_own_score.py --fast
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
from torch.utils.data import DataLoader, Subset, TensorDataset, random_split

import lightning_fairprune as lfp


def late_bloomer(seen: lfp.Dynamics) -> torch.Tensor:
    """Returns the first epoch in which each sample was classified correctly; the number of epochs if none.

    `seen.signal(name)` is [epochs, samples]. Names: correct, el2n, entropy, loss, margin, p_true. Only
    signals that a score reads are recorded: here one bit per sample and epoch.
    """
    correct = seen.signal("correct") & seen.observed
    first = correct.float().argmax(dim=0)  # the first True; 0 if there is none
    return torch.where(correct.any(dim=0), first, seen.num_epochs).float()


class Classifier(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return F.cross_entropy(self.net(images), labels)

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--fast", action="store_true", help="fewer epochs")
    epochs = 8 if parser.parse_args().fast else 40
    pl.seed_everything(0, verbose=False)

    pixels, labels = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(labels))
    train, val = random_split(data, [0.7, 0.3])
    datamodule = pl.LightningDataModule.from_datasets(train, val, batch_size=32)

    # 1. In one fit: after the warm-up keep the hardest samples of every class, under DRoP quotas.
    prune = lfp.DataPruning(density=0.3, warmup_epochs=0.5, score=late_bloomer, keep="hard")
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[prune],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Classifier(), datamodule)

    # 2. On the record: save it once, select as often as you like, train with any loop.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "dynamics.safetensors"
        prune.dynamics.save(path)
        seen = lfp.Dynamics.load(path)
    sizes = torch.bincount(seen.target)
    recall = prune.history[-1].recall
    quota = lfp.quotas.drop(sizes, recall, budget=len(seen.target) // 5)
    score = late_bloomer(seen)
    kept = lfp.select(seen.target, quota, score=score, keep="hard")
    loader = DataLoader(Subset(train, kept.indices.tolist()), batch_size=32, shuffle=True)

    print(f"\nin the fit: {prune.selection}")
    print(f"afterwards: {kept}, {len(loader)} batches an epoch\n")
    print("digit  size  kept  first right in epoch, mean of all and of the kept")
    for k in range(len(sizes)):
        of_class = seen.target == k
        chosen = score[of_class & kept.mask()]
        print(
            f"{k:5}  {sizes[k]:4}  {quota[k]:4}  {score[of_class].mean():.2f}  {chosen.mean():.2f}"
        )


if __name__ == "__main__":
    main()
