"""Groups that nobody labelled: does a fit that discovers them help the worst group as one that knows them?

Three sets. *grounds*: the digits of examples/06_groups.py, low or high, on a dark or a bright ground that agrees with the
label in 93 % of the training samples. *birds*: airplanes and birds of CIFAR-10, cut to a disc and pasted on two textures, of
which one agrees with the label in 95 % of the training samples, as land and water in Waterbirds. *plain*: the same
without a hidden group, as the texture is independent of the label. In validation and test data it always is.

Each is trained by quotas of classes ("no groups"), of label x ground ("known") and of what `groups.Discovered()` finds
("discovered"), at equal samples, and tested on images that neither training nor validation has seen.

    python benchmarks/discovered_groups.py --data FOLDER     # with cifar10/train.npz or cifar-10-batches-py
    python benchmarks/discovered_groups.py                   # the digits alone
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from _cifar10 import read_cifar10
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_fairprune as lfp
from lightning_fairprune.groups import Discovered

Parts = dict[str, TensorDataset]

SETS = ("grounds", "birds", "plain")
PAIR = (0, 2)  # airplane, bird
DISC = 22  # pixels across
QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}


def textures(which: Tensor, generator: torch.Generator) -> Tensor:
    """Returns pictures [N,3,32,32] in [0, 1]: greenish stripes where `which` is 0, bluish waves where it is 1."""
    n, place = len(which), torch.arange(32.0)
    phase = 2 * math.pi * torch.rand(n, 2, generator=generator)
    pace = 0.5 + 0.5 * torch.rand(n, 1, generator=generator)
    down = torch.sin(pace * place + phase[:, :1])[:, None, :, None]
    across = torch.sin(pace * place + phase[:, 1:])[:, None, None, :]
    wave = torch.where(which[:, None, None, None] == 0, down, down * across)
    colours = torch.tensor([[0.35, 0.50, 0.30], [0.30, 0.42, 0.55]])[which][:, :, None, None]
    noise = torch.randn(n, 3, 32, 32, generator=generator)
    return (colours + 0.15 * wave + 0.08 * noise).clamp(0, 1)


def pasted(images: Tensor, which: Tensor, generator: torch.Generator) -> Tensor:
    """Returns images uint8 [N,32,32,3], cut to a disc, on textures: normalised, [N,3,32,32]."""
    small = F.interpolate(images.permute(0, 3, 1, 2).float() / 255, (DISC, DISC), mode="area")
    line, start = torch.linspace(-1, 1, DISC), (32 - DISC) // 2
    disc = (line[:, None] ** 2 + line**2 <= 1).float()
    whole = textures(which, generator)
    middle = whole[:, :, start : start + DISC, start : start + DISC]
    middle.copy_(disc * small + (1 - disc) * middle)
    return (whole - 0.45) / 0.25


def birds(root: Path, cache: Path | None, seed: int, agreement: float) -> Parts:
    """Returns 3,000 training, 600 validation and 1,000 test images with label and 2 * label + texture."""
    generator = torch.Generator().manual_seed(seed)

    def part(name: str, start: int, each: int, agreement: float) -> TensorDataset:
        images, labels = read_cifar10(root, name, cache)
        own = torch.cat([(labels == k).nonzero().flatten()[start : start + each] for k in PAIR])
        label = (labels[own] == PAIR[1]).long()
        agrees = torch.rand(len(own), generator=generator) < agreement
        texture = torch.where(agrees, label, 1 - label)
        return TensorDataset(pasted(images[own], texture, generator), label, 2 * label + texture)

    return {
        "train": part("train", 1500 * (seed % 3), 1500, agreement),
        "val": part("test", 0, 300, 0.5),
        "test": part("test", 500, 500, 0.5),
    }


def grounds(seed: int) -> Parts:
    """Returns 900 training, 400 validation and 497 test digits with label and 2 * label + ground."""
    from sklearn.datasets import load_digits

    pixels, digits = load_digits(return_X_y=True)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(digits), generator=generator)
    images = torch.tensor(pixels, dtype=torch.float32)[order] / 16
    label = (torch.tensor(digits)[order] >= 5).long()
    train = torch.arange(len(label)) < 900
    agrees = torch.rand(len(label), generator=generator) < torch.where(train, 0.93, 0.5)
    ground = torch.where(agrees, label, 1 - label)
    images = images + 0.6 * ground[:, None]
    cuts = {"train": slice(900), "val": slice(900, 1300), "test": slice(1300, None)}
    return {
        name: TensorDataset(images[cut], label[cut], (2 * label + ground)[cut])
        for name, cut in cuts.items()
    }


def network(name: str) -> nn.Module:
    if name == "grounds":
        return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 2))
    layers: list[nn.Module] = []
    for before, after in ((3, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 2))


class Classifier(pl.LightningModule):
    def __init__(self, name: str, rate: float) -> None:
        super().__init__()
        self.net, self.rate = network(name), rate

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        images, labels, _ = batch
        return F.cross_entropy(self.net(images), labels)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.training_step(batch, batch_idx)

    test_step = validation_step

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), self.rate, momentum=0.9, weight_decay=5e-4)
        # To 0: recalls of groups jump by tens of points between epochs at a constant rate.
        epochs = self.trainer.max_epochs
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1 - epoch / epochs)
        return [optimizer], [schedule]


METHODS: dict[str, Any] = {"no groups": None, "known": 2, "discovered": Discovered()}
RULES: dict[str, Callable[[], Any]] = {
    "Minimax": lambda: lfp.quotas.Minimax(step=2.0),
    "DRoP": lambda: lfp.quotas.drop,
    "balanced": lambda: lfp.quotas.balanced,
}


def train(name: str, parts: Parts, method: str, rule: str, seed: int) -> dict[str, Any]:
    """Returns the test recalls of the four groups, and how many groups were discovered."""
    pl.seed_everything(seed, verbose=False)
    digits = name == "grounds"
    model = Classifier(name, 0.1 if digits else 0.05)
    prune = lfp.DataPruning(0.3, 4, quota=RULES[rule](), group_by=METHODS[method], seed=seed)
    track = lfp.RecallMonitor(group_by=2)
    trainer = pl.Trainer(
        max_epochs=40 if digits else 16,
        check_val_every_n_epoch=2,
        callbacks=[prune, track],
        **QUIET,
    )
    size = 32 if digits else 64
    loaders = {
        part: DataLoader(data, size if part == "train" else 500, shuffle=part == "train")
        for part, data in parts.items()
    }
    trainer.fit(model, loaders["train"], loaders["val"])
    trainer.test(model, loaders["test"], verbose=False)
    counts, record = track.counts["test/groups"], prune.record
    assert record is not None
    found: dict[str, Any] = {}
    if method == "discovered" and record.group_class is not None:
        group = parts["train"].tensors[2]
        found["groups"] = [
            [int(((record.target == i) & (group == j)).sum()) for j in range(4)]
            for i in range(len(record.group_class))
        ]
    average = float(track.counts["test"].tp.sum() / track.counts["test"].support.sum())
    return {"recall": counts.recall.tolist(), "worst": counts.worst, "average": average, **found}


def interval(values: list[float]) -> str:
    """Returns the mean and half of its 95 % interval, in points."""
    mean = 100 * statistics.fmean(values)
    reach = 100 * float(lfp.statistics.half_widths(torch.tensor(values)[:, None], 0.95))
    return f"{mean:.1f}" if reach != reach else f"{mean:.1f} ±{reach:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of CIFAR-10; without it only the digits")
    parser.add_argument("--cache", type=Path, help="folder for the decoded images")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--rules", nargs="+", choices=list(RULES), default=["Minimax"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[10, 11, 12])
    parser.add_argument("--out", type=Path, help="JSON file with every number")
    given = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    torch.set_num_threads(1)
    sets = [name for name in given.sets if given.data is not None or name == "grounds"]
    results: dict[str, list[dict[str, Any]]] = {}
    for name in sets:
        for seed in given.seeds:
            agreement = 0.95 if name == "birds" else 0.5
            parts = (
                grounds(seed)
                if name == "grounds"
                else birds(given.data, given.cache, seed, agreement)
            )
            for rule in given.rules:
                for method in METHODS:
                    if name == "plain" and method == "known":
                        continue
                    start = time.perf_counter()
                    found = train(name, parts, method, rule, seed)
                    results.setdefault(f"{name} | {rule} | {method}", []).append(found)
                    shown = ", ".join(f"{100 * r:.1f}" for r in found["recall"])
                    print(
                        f"{name} {rule} {method} seed {seed}: {shown}; {found.get('groups', '')} "
                        f"{time.perf_counter() - start:.0f} s",
                        flush=True,
                    )
    print(
        "\n| set | rule | quotas of | average | worst group | worst, against known (plain: no groups) |"
    )
    print("|---|---|---|---|---|---|")
    for key, runs in results.items():
        name, rule, _ = key.split(" | ")
        others = results[f"{name} | {rule} | {'no groups' if name == 'plain' else 'known'}"]
        against = [run["worst"] - other["worst"] for run, other in zip(runs, others, strict=True)]
        row = (interval([run[what] for run in runs]) for what in ("average", "worst"))
        print(f"| {key} | {' | '.join(row)} | {interval(against)} |")
    if given.out is not None:
        given.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
