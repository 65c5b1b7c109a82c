"""Do the quotas of DataPruning's defaults hurt where they cannot help? Digits of scikit-learn, density .3.

- easy: 1,100 training images, every recall near 1, thirty validation images a class; only noise tells classes apart.
- easy, restart: the same with `after="restart"`: quotas are set once, and the final model sees the kept images alone.
- long tail: the data of `fairprune demo`, the hardest digits rarest; here quotas help, and must continue to.
- noisy labels: the easy data, but 40 % of the training and validation images of one digit have exchanged their
  labels with images of the others; test labels are right.

All methods of a task train the same network from the same weights, on as many images; only what is named differs
from the defaults. (The long tail updates quotas every third epoch, as the demo does.)

    python benchmarks/never_hurt.py                    # about 2 s a run; runs in --out are skipped
    python benchmarks/never_hurt.py --table            # no training
    python benchmarks/never_hurt.py --counts           # no training: counts drawn from known recalls
"""

from __future__ import annotations

import argparse
import json
import logging
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import lightning_fairprune as lfp
from lightning_fairprune import quotas, recalls, statistics
from lightning_fairprune.demo._digits import NUM_CLASSES, LongTailedDigits, SmallCNN, load

DENSITY = 0.3
TRAIN, VAL = 110, 30  # images of each class, of the easy data
WRONG = 0.4

# Arguments of DataPruning; the first method is the one that the others are compared with.
PROPORTIONAL: Mapping[str, Any] = {"quota": quotas.proportional}
DROP: Mapping[str, Mapping[str, Any]] = {
    "DRoP, shrinkage 10": {"shrinkage": 10.0},
    "DRoP, default": {},
}
OTHERS: Mapping[str, Mapping[str, Any]] = {
    "Minimax, default": {"quota": quotas.Minimax()},
    "DRoP, guard": {"guard": True},
    "Minimax, guard": {"quota": quotas.Minimax(), "guard": True},
}
TASKS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "easy": {"proportional": PROPORTIONAL, **DROP},
    "easy, restart": {
        name: {"after": "restart", **given}
        for name, given in {"proportional": PROPORTIONAL, **DROP}.items()
    },
    "long tail": {"proportional": PROPORTIONAL, **DROP, **OTHERS},
    "noisy labels": {"no quotas": {"quota": None}, **DROP, **OTHERS},
}


@dataclass(frozen=True)
class Length:
    batch: int
    learning_rate: float
    warmup: int  # epochs
    steps: int
    validate_every: int = 1


EASY = Length(batch=64, learning_rate=1e-2, warmup=3, steps=200)
RESTART = Length(64, 1e-2, warmup=9, steps=353)  # 153 of them before the restart
LENGTHS = {
    "easy": EASY,
    "easy, restart": RESTART,
    "noisy labels": EASY,
    "long tail": Length(32, 5e-3, 9, 320, 3),
}


class Digits(LongTailedDigits):
    """The data of the demo in batches of another size."""

    batch = 32

    def train_dataloader(self) -> Any:
        return DataLoader(self.train, self.batch, shuffle=True, drop_last=True)


class EasyDigits(Digits):
    """As many images of every digit; with `noisy` one digit, the seed modulo 10, has wrong labels."""

    def __init__(self, seed: int, *, noisy: bool) -> None:
        super().__init__(seed)
        self.noisy, self.batch = noisy, EASY.batch

    def setup(self, stage: str) -> None:
        images, labels, _ = load()
        generator = torch.Generator().manual_seed(self.seed)
        parts: list[list[Tensor]] = [[], [], []]
        for k in range(NUM_CLASSES):
            members = (labels == k).nonzero().flatten()
            members = members[torch.randperm(len(members), generator=generator)]
            for part, chosen in zip(parts, members.tensor_split([TRAIN, TRAIN + VAL]), strict=True):
                part.append(chosen)
        sets = []
        for i, part in enumerate(parts):
            chosen = torch.cat(part)
            target = labels[chosen]
            if self.noisy and i < 2:
                target = exchanged(target, self.seed % NUM_CLASSES, generator)
            sets.append(TensorDataset(images[chosen], target))
        self.train, self.val, self.test = sets


def exchanged(target: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Exchanges the labels of a share of class k with those of as many others."""
    own, others = (target == k).nonzero().flatten(), (target != k).nonzero().flatten()
    n = round(WRONG * len(own))
    own = own[torch.randperm(len(own), generator=generator)[:n]]
    others = others[torch.randperm(len(others), generator=generator)[:n]]
    target = target.clone()
    target[own], target[others] = target[others], target[own]
    return target


def run(task: str, method: str, seed: int) -> dict[str, Any]:
    """Trains one network, and returns its line of the results."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        length = LENGTHS[task]
        model = SmallCNN(length.learning_rate)
        data = Digits(seed) if task == "long tail" else EasyDigits(seed, noisy=task == "noisy labels")  # fmt: skip
        every = {} if length.validate_every == 1 else {"update_every": length.validate_every}
        prune = lfp.DataPruning(DENSITY, length.warmup, seed=seed, **every, **TASKS[task][method])
        monitor = lfp.RecallMonitor(figures=False)
        quiet: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "logger": False}
        quiet |= dict.fromkeys(
            ("enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
        )
        start = time.perf_counter()
        pl.Trainer(
            max_epochs=-1,
            max_steps=length.steps,
            callbacks=[prune],
            num_sanity_val_steps=0,
            check_val_every_n_epoch=length.validate_every,
            **quiet,
        ).fit(model, data)
        seconds = time.perf_counter() - start
        pl.Trainer(callbacks=[monitor], **quiet).test(model, data, verbose=False)
    counts = monitor.counts["test"]
    quota = [e.quota.tolist() for e in prune.history if e.quota is not None]
    return {
        "task": task,
        "method": method,
        "seed": seed,
        "average": counts.mean,
        "worst": counts.worst,
        "tp": counts.tp.tolist(),
        "support": counts.support.tolist(),
        "recalls": [None if e.recall is None else e.recall.tolist() for e in prune.history],
        "quotas": quota,
        "frozen": [] if prune.record is None else prune.record.frozen,
        "samples_seen": length.steps * length.batch,
        "seconds": round(seconds, 1),
    }


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Returns means over the seeds, in points of recall, with 95 % intervals; differences are of the same seeds."""
    text = []
    for task, methods in TASKS.items():
        found = {m: {r["seed"]: r for r in lines if (r["task"], r["method"]) == (task, m)} for m in methods}  # fmt: skip
        base = next(iter(methods))
        text += [
            f"\n| {task} | seeds | average | worst | average - {base} | worst - {base} | most of the budget |",
            "|---|--:|--:|--:|--:|--:|--:|",
        ]
        for method, runs in found.items():
            if not runs:
                continue
            seeds = sorted(runs.keys() & found[base].keys())
            cells = [spread([r[key] for r in runs.values()]) for key in ("average", "worst")]
            for key in ("average", "worst"):
                gain = [runs[s][key] - found[base][s][key] for s in seeds]
                cells.append("" if method == base or not gain else spread(gain, sign="+"))
            shares = [max(q) / sum(q) for r in runs.values() for q in r["quotas"]]
            most = f"{sum(shares) / len(shares):.2f}" if shares else ""
            text.append(f"| {method} | {len(runs)} | {' | '.join(cells)} | {most} |")
    return "\n".join(text)


def spread(values: Sequence[float], sign: str = "") -> str:
    points = 100 * torch.tensor(values, dtype=torch.float64)
    if len(points) < 2:
        return f"{float(points.mean()):{sign}.1f}"
    half = float(statistics.half_widths(points.unsqueeze(1)).squeeze())
    return f"{float(points.mean()):{sign}.1f} ± {half:.1f}"


def misplaced(support: Tensor, recall: Tensor, sizes: Tensor, draws: int = 1000) -> list[float]:
    """Returns the share of DRoP's budget that noise moves to another class, in percent.

    Of recalls as counted, with ten pseudo-samples, and with the default.
    """
    support, recall = support.double().expand(draws, -1), recall.double().expand(draws, -1)
    tp = torch.binomial(support, recall)
    counted = tp / support
    mean = counted.mean(-1, keepdim=True)
    estimates = (counted, (tp + 10 * mean) / (support + 10), recalls.empirical_bayes(tp, support))
    ideal = shares(recall, sizes)
    return [50 * float((shares(e, sizes) - ideal).abs().sum(-1).mean()) for e in estimates]


def shares(recall: Tensor, sizes: Tensor) -> Tensor:
    weight = sizes * (1 - recall).clamp(min=0)
    weight = torch.where(weight.sum(-1, keepdim=True) > 0, weight, sizes.double())
    return weight / weight.sum(-1, keepdim=True)


def counts_table() -> str:
    birds = torch.tensor([3498, 184, 56, 1057])  # training images of the groups of Waterbirds
    skewed, even = birds // 4, torch.tensor([467, 466, 133, 133])
    bad = torch.tensor([0.99, 0.88, 0.73, 0.95])
    many = (2 * torch.linspace(0.004, 1, 128) ** -0.9).round()
    rows: dict[str, tuple[Tensor, Tensor, Tensor]] = {
        "Waterbirds, its validation images, all .93": (even, torch.full((4,), 0.93), birds),
        "Waterbirds, its validation images, .99 .88 .73 .95": (even, bad, birds),
        "Waterbirds, as skewed as in training, all .93": (skewed, torch.full((4,), 0.93), birds),
        "Waterbirds, as skewed as in training, .99 .88 .73 .95": (skewed, bad, birds),
        "128 groups of 2 to 288, all .8": (many, torch.full((128,), 0.8), many),
        "128 groups of 2 to 288, Beta(16, 4)": (many, beta(16, 4, 128), many),
        "128 groups of 2 to 288, Beta(4, 1)": (many, beta(4, 1, 128), many),
    }
    for k, n in ((10, 30), (10, 100), (10, 500), (100, 50)):
        size, support = torch.full((k,), 100), torch.full((k,), n)
        rows |= {
            f"{k} classes of {n}, all .98": (support, torch.full((k,), 0.98), size),
            f"{k} classes of {n}, Beta(80, 20)": (support, beta(80, 20, k), size),
            f"{k} classes of {n}, Beta(8, 2)": (support, beta(8, 2, k), size),
            f"{k} classes of {n}, Beta(29, 1)": (support, beta(29, 1, k), size),
        }
    torch.manual_seed(0)
    text = [
        "| validation samples and recalls | as counted | shrinkage 10 | default |",
        "|---|--:|--:|--:|",
    ]
    for name, row in rows.items():
        text.append(f"| {name} | {' | '.join(f'{x:.1f}' for x in misplaced(*row))} |")
    return "\n".join(text)


def beta(a: float, b: float, k: int) -> Tensor:
    """Returns the k quantiles in the middle of equal parts of a Beta distribution."""
    from scipy import stats

    return torch.from_numpy(stats.beta.ppf((torch.arange(k).numpy() + 0.5) / k, a, b))


def main() -> None:
    results = Path(__file__).parent / "results" / "never_hurt.jsonl"
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", default=";".join(TASKS), help="separated by ';'; default: all")
    parser.add_argument("--methods", help="their names, separated by ';'; default: all")
    parser.add_argument("--seeds", type=int, default=10, help="%(default)s")
    parser.add_argument("--out", type=Path, default=results)
    parser.add_argument("--table", action="store_true", help="print the table of --out and stop")
    parser.add_argument(
        "--counts", action="store_true", help="draw counts from known recalls and stop"
    )
    given = parser.parse_args()
    if given.counts:
        print(counts_table())
        return
    if not given.table:
        torch.set_num_threads(1)
        for name in ("lightning.pytorch", "lightning.fabric"):
            logging.getLogger(name).setLevel(logging.ERROR)
        warnings.simplefilter("ignore")
        tasks = given.tasks.split(";")
        wanted = None if given.methods is None else given.methods.split(";")
        done = {(r["task"], r["method"], r["seed"]) for r in read(given.out)}
        # Seed by seed, so that a table of all methods exists early.
        for seed in range(given.seeds):
            for task in tasks:
                for method in TASKS[task]:
                    if (task, method, seed) in done or (wanted and method not in wanted):
                        continue
                    line = run(task, method, seed)
                    with given.out.open("a") as file:
                        file.write(json.dumps(line) + "\n")
                    print(
                        f"{task}, {method}, seed {seed}: {line['average']:.3f} {line['worst']:.3f}",
                        flush=True,
                    )
    print(table(read(given.out)))


if __name__ == "__main__":
    main()
