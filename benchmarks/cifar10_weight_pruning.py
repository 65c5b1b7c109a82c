"""Pruning the weights of a small ResNet on CIFAR-10: which criterion costs the weak classes what?

For each seed a dense network is trained; each method prunes it in one shot to a compression ratio and trains what
is left for `--finetune` steps. Recalls of all classes are measured on the whole test set before and after, as in
Good et al. (NeurIPS 2022), and compared by the intensification ratio alpha. Nothing is chosen by the test set.

    python benchmarks/cifar10_weight_pruning.py --data ROOT --out results.jsonl --work FOLDER
    python benchmarks/cifar10_weight_pruning.py --out results.jsonl --table                   # no training

A network that the results file already holds is not trained again. On two cores start it twice, with `--shard 0/2`
and `--shard 1/2`.
"""

from __future__ import annotations

import argparse
import copy
import logging
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
import torch.nn.functional as F
from _cifar10 import BATCH_SIZE, NAMES, Cifar10Small, MissingDataError, normalise
from cifar10_one_fit import append, read
from scipy import stats
from torch import Tensor, nn

import lightning_fairprune as lfp
from lightning_fairprune import criteria, statistics

RATIOS = (2, 10, 50)
# Name of the method -> criterion, its options, and the ratios at which it is tried.
METHODS: dict[str, tuple[Callable[..., Any], dict[str, Any], tuple[int, ...]]] = {
    "magnitude": (criteria.magnitude, {}, RATIOS),
    "gradient": (criteria.gradient, {}, RATIOS),
    "undecayed": (criteria.undecayed, {}, RATIOS),
    "random": (criteria.random, {}, RATIOS),
    "fairgrape": (criteria.fairgrape_masks, {"num_groups": len(NAMES)}, (10, 50)),
    "magnitude, performance-weighted loss": (criteria.magnitude, {}, (10, 50)),
}
WEIGHT_DECAY = 5e-4


class Block(nn.Module):
    """Two 3x3 convolutions around a shortcut."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.shortcut = nn.Conv2d(before, after, 1, stride, bias=False) if stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + (x if self.shortcut is None else self.shortcut(x)))


class SmallResNet(L.LightningModule):
    """Seven 3x3 convolutions with 16, 32 and 64 channels on 16 x 16 pixels and fewer: 78,042 weights."""

    def __init__(self, total_steps: int, lr: float, rise: float) -> None:
        super().__init__()
        self.total_steps, self.lr, self.rise = total_steps, lr, rise
        self.teacher: list[nn.Module] = []  # in a list, so that it is no part of this module
        self.net = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1, bias=False),
            nn.MaxPool2d(2),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            Block(16, 16, 1),
            Block(16, 32, 2),
            Block(32, 64, 2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(64, len(NAMES)),
        ).to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(images)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        logits = self(images)
        if not self.teacher:
            return F.cross_entropy(logits, labels)
        with torch.no_grad():
            dense = self.teacher[0](images)
        return lfp.weighting.performance_weighted_loss(logits, dense, labels)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(
            self.parameters(), self.lr, momentum=0.9, nesterov=True, weight_decay=WEIGHT_DECAY
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def factor(self, step: int) -> float:
        done = (step + 1) / (self.total_steps + 1)
        return max(0.0, min(done / self.rise, (1 - done) / (1 - self.rise)))


def fit(model: SmallResNet, data: Cifar10Small, callbacks: list[L.Callback]) -> float:
    """Trains for as many steps as the schedule has and returns the seconds."""
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        precision="bf16-mixed",
        max_epochs=1000,
        max_steps=model.total_steps,
        limit_val_batches=0,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    start = time.perf_counter()
    trainer.fit(model, datamodule=data)
    return time.perf_counter() - start


@torch.no_grad()
def test_recall(model: SmallResNet, data: Cifar10Small) -> Tensor:
    """Returns the recall of every class on all 10,000 test images."""
    model.eval()
    right, support = torch.zeros(2, len(NAMES), dtype=torch.float64)
    for part in (data.val_set, data.test_set):
        for images, labels in zip(part.images.split(500), part.labels.split(500), strict=True):
            correct = model(normalise(images)).argmax(1) == labels
            right.index_add_(0, labels, correct.double())
            support.index_add_(0, labels, torch.ones(len(labels), dtype=torch.float64))
    recall: Tensor = right / support
    return recall


class Timed(lfp.WeightPruning):
    """WeightPruning that notes how long its one pruning took."""

    seconds = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        start = time.perf_counter()
        super().on_train_start(trainer, pl_module)
        self.seconds = time.perf_counter() - start


def run(
    method: str, ratio: int, seed: int, steps: int, dense: SmallResNet, data: Cifar10Small
) -> dict[str, Any]:
    """Prunes a copy of the dense network, trains it on and returns the line for the results file."""
    criterion, options, _ = METHODS[method]
    L.seed_everything(1000 + seed, verbose=False)
    model = SmallResNet(steps, lr=0.1, rise=0.1)
    model.load_state_dict(dense.state_dict())
    if "loss" in method:
        model.teacher.append(copy.deepcopy(dense).eval())
    prune = Timed(
        criterion,
        1 - 1 / ratio,
        start=0,
        end=0,
        seed=seed,
        criterion_options=options,
        num_batches=16,
    )
    before = test_recall(dense, data)
    seconds = fit(model, data, [prune])
    after = test_recall(model, data)
    alpha = statistics.intensification_ratio(before, after)
    return {
        "method": method,
        "ratio": ratio,
        "seed": seed,
        "finetune_steps": steps,
        "alpha": round(float(alpha), 6),
        "average": round(after.mean().item(), 6),
        "worst": round(after.min().item(), 6),
        "gap": round((after.max() - after.min()).item(), 6),
        "average_before": round(before.mean().item(), 6),
        "worst_before": round(before.min().item(), 6),
        "recall_before": [round(value, 4) for value in before.tolist()],
        "recall_after": [round(value, 4) for value in after.tolist()],
        "sparsity": lfp.masks.sparsity_of(prune.masks).total,
        "seconds_to_prune": round(prune.seconds, 2),
        "seconds": round(seconds, 1),
    }


def interval(values: list[float], level: float = 0.95) -> str:
    """Returns mean and half width of the t interval."""
    found = statistics.summarise(torch.tensor(values, dtype=torch.float64), level)
    return f"{found.mean:.3f} ± {found.high - found.mean:.3f}"


def table(lines: list[dict[str, Any]]) -> str:
    """Returns the markdown table: mean and 95 % t interval over the seeds."""
    rows = [
        "| ratio | method | seeds | alpha | average | worst | gap | s to prune | s |",
        "|--:|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    seeds = {line["seed"]: line for line in lines}.values()
    if len(seeds) > 1:
        cells = [
            interval([line[f"{key}_before"] for line in seeds]) for key in ("average", "worst")
        ]
        gaps = [max(line["recall_before"]) - min(line["recall_before"]) for line in seeds]
        rows.append(f"| 1 | dense | {len(seeds)} | | {' | '.join(cells)} | {interval(gaps)} | | |")
    for ratio in RATIOS:
        for method in METHODS:
            group = [line for line in lines if (line["method"], line["ratio"]) == (method, ratio)]
            if len(group) < 2:
                continue
            alpha = torch.tensor([line["alpha"] for line in group], dtype=torch.float64)
            label = statistics.summarise(alpha).label
            cells = [interval([line[key] for line in group]) for key in ("average", "worst", "gap")]
            means = [
                sum(line[key] for line in group) / len(group)
                for key in ("seconds_to_prune", "seconds")
            ]
            rows.append(
                f"| {ratio} | {method} | {len(group)} | {interval(alpha.tolist())} {label} | "
                f"{' | '.join(cells)} | {means[0]:.1f} | {means[1]:.0f} |"
            )
    return "\n".join(rows)


def orders(lines: list[dict[str, Any]]) -> str:
    """Returns the paired differences of alpha that the paper makes claims about."""
    rows = [
        "| ratio | alpha of | minus alpha of | difference | one-sided p |",
        "|--:|---|---|--:|--:|",
    ]
    pairs = [("magnitude", "undecayed"), ("gradient", "magnitude"), ("gradient", "undecayed")]
    for ratio in RATIOS:
        alpha = {
            (line["method"], line["seed"]): line["alpha"]
            for line in lines
            if line["ratio"] == ratio
        }
        for high, low in pairs:
            seeds = [s for m, s in alpha if m == high and (low, s) in alpha]
            if len(seeds) < 2:
                continue
            high_alpha, low_alpha = (
                torch.tensor([alpha[name, s] for s in seeds], dtype=torch.float64)
                for name in (high, low)
            )
            p = stats.ttest_rel(high_alpha.numpy(), low_alpha.numpy(), alternative="greater").pvalue
            rows.append(
                f"| {ratio} | {high} | {low} | {interval((high_alpha - low_alpha).tolist())} | {p:.2g} |"
            )
    return "\n".join(rows)


def dense_of(seed: int, steps: int, data: Cifar10Small, folder: Path) -> SmallResNet:
    """Returns the dense network of a seed, trained unless it was before."""
    path = folder / f"dense{seed}.pt"
    L.seed_everything(seed, verbose=False)
    model = SmallResNet(steps, lr=0.4, rise=0.2)
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
        return model
    fit(model, data, [])
    folder.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    torch.save(model.state_dict(), temporary)
    temporary.replace(path)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with CIFAR-10, see _cifar10.py")
    parser.add_argument("--cache", type=Path, help="folder for the decoded images")
    parser.add_argument("--work", type=Path, help="folder for dense networks")
    parser.add_argument(
        "--out", type=Path, required=True, help="results file, one JSON object a line"
    )
    parser.add_argument("--seeds", type=int, default=6, help="how many")
    parser.add_argument("--dense-epochs", type=int, default=8)
    parser.add_argument("--finetune", type=int, default=600, help="steps after pruning")
    parser.add_argument("--train-size", type=int, help="so many images only, for a quick try")
    parser.add_argument("--shard", default="0/1", help="which part of the seeds, such as 0/2")
    parser.add_argument(
        "--table", action="store_true", help="print the tables of what is there and stop"
    )
    given = parser.parse_args()
    if given.table:
        lines = read(given.out)
        print(table(lines), orders(lines), sep="\n\n")
        return
    if given.data is None or given.work is None:
        raise SystemExit("--data and --work are needed to train; --table needs neither.")
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    data = Cifar10Small(given.data, given.cache, given.train_size)
    try:
        data.setup("fit")
    except MissingDataError as error:
        raise SystemExit(str(error)) from None
    assert data.train_set is not None
    part, parts = map(int, given.shard.split("/"))
    steps = given.dense_epochs * -(-len(data.train_set) // BATCH_SIZE)
    for seed in range(part, given.seeds, parts):
        done = {(line["method"], line["ratio"]) for line in read(given.out) if line["seed"] == seed}
        todo = [
            (m, r) for m, (_, _, ratios) in METHODS.items() for r in ratios if (m, r) not in done
        ]
        if not todo:
            continue
        dense = dense_of(seed, steps, data, given.work)
        for method, ratio in todo:
            line = run(method, ratio, seed, given.finetune, dense, data)
            append(given.out, line)
            print(
                f"seed {seed} ratio {ratio} {method}: alpha {line['alpha']:.3f}, average "
                f"{line['average']:.3f}, worst {line['worst']:.3f}, {line['seconds']:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
