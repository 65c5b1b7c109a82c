"""One `trainer.fit` on CIFAR-10 under a fixed number of samples seen: which pruning helps the worst class?

Every setting trains the same 25,354-weight network from scratch until it has seen `--samples` training
images (400,000: eight epochs of the full training set), so every setting costs the same arithmetic. The
schedule of the learning rate counts optimiser steps and ends at 0 with the last one. Quotas read the recalls
of one half of the test images; all numbers reported here are of the other half, once, after training.

    python benchmarks/cifar10_one_fit.py --data ROOT --out results.jsonl                  # about 1 min a run
    python benchmarks/cifar10_one_fit.py --out results.jsonl --table --figure curve.svg   # no training

A run that the results file already holds is skipped, so the command can be stopped and repeated. On two
cores start it twice, with `--shard 0/2` and `--shard 1/2`.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import time
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from _cifar10 import BATCH_SIZE, NAMES, Cifar10Small, MissingDataError, SmallCNN, normalise
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

import lightning_fairprune as lfp
from lightning_fairprune import quotas, scores

DENSITY = 0.3


@dataclass(frozen=True)
class Setting:
    """One line of the table.

    Args:
        label: what the figure calls it.
        family: points of one family share a colour.
        warmup: the warm-up as a share of the samples seen: 3/8 is 3 epochs of the 8 that 400,000 samples
            are; None for no pruning at all.
        prune: arguments of DataPruning other than density, warm-up and seed.
        times: samples seen, in multiples of `--samples`.
    """

    label: str
    family: str
    warmup: float | None = None
    prune: Mapping[str, Any] = field(default_factory=dict)
    times: int = 1

    @property
    def restarts(self) -> bool:
        return self.prune.get("after") == "restart"


STATIC = {"resample_every": None, "update_every": None, "shrinkage": 0.0}
FRESH = {"resample_every": 1, "update_every": None}
# Restarting, the query model takes half of the samples and the final model the other half, so that both
# run through one complete schedule and the recalls come from an annealed model: one validation is enough.
RESTART = {**STATIC, "after": "restart", "recall_window": 1}


def drop(every: int, window: int) -> Setting:
    return Setting(
        f"DRoP, every {every}, window {window}",
        "DRoP",
        3 / 8,
        {
            "quota": quotas.drop,
            "resample_every": 1,
            "update_every": every,
            "recall_window": window,
            "shrinkage": 0.0,
        },
    )


def minimax(
    step: float, leak: float, every: int = 1, window: int = 2, shrinkage: float = 10.0
) -> Setting:
    return Setting(
        f"Minimax step {step:g}"
        + (f", leak {leak:g}" if leak else "")
        + (f", every {every}" if every > 1 else ""),
        "Minimax",
        3 / 8,
        {
            "quota": quotas.Minimax(step, leak, worst=1e-9),
            "resample_every": 1,
            "update_every": every,
            "recall_window": window,
            "shrinkage": shrinkage,
        },
    )


SETTINGS = {
    "full": Setting("all data", "all data"),
    "uniform_static": Setting(
        "random, static", "random", 5 / 8, {"quota": quotas.proportional, **STATIC}
    ),
    "uniform_fresh": Setting(
        "random, fresh", "random", 3 / 8, {"quota": quotas.proportional, **FRESH}
    ),
    "el2n": Setting(
        "EL2N", "EL2N", 5 / 8, {"score": scores.el2n, "keep": "hard", "quota": None, **STATIC}
    ),
    "drop_static": Setting(
        "DRoP, static", "DRoP", 5 / 8, {"quota": quotas.drop, "recall_window": 3, **STATIC}
    ),
    "drop_every1_window3": drop(1, 3),
    "drop_every2_window3": drop(2, 3),
    "drop_every1_window5": drop(1, 5),
    "drop_every2_window5": drop(2, 5),
    "minimax_step1": minimax(1, 0, shrinkage=0.0),
    "minimax_step3": minimax(3, 0, shrinkage=0.0),
    "minimax_step1_leak.2": minimax(1, 0.2, shrinkage=0.0),
    "minimax_step1_leak.5": minimax(1, 0.5, shrinkage=0.0),
    "minimax_step1_leak.1": minimax(1, 0.1),
    "minimax_step.5": minimax(0.5, 0),
    "minimax_step1_every2": minimax(1, 0, every=2, window=3),
    "default": Setting("DataPruning's defaults", "DRoP", 3 / 8),
    "default_warmup1": Setting("defaults, 1 warm-up epoch", "DRoP", 1 / 8),
    "default_warmup2": Setting("defaults, 2 warm-up epochs", "DRoP", 2 / 8),
    "uniform_restart": Setting(
        "random, restart", "random", 1 / 2, {"quota": quotas.proportional, **RESTART}
    ),
    "drop_restart": Setting("DRoP, restart", "DRoP", 1 / 2, {"quota": quotas.drop, **RESTART}),
    # The final model alone sees as many samples as the models above; the query model costs as much again.
    "uniform_restart_twice": Setting(
        "random, restart, 2x", "random", 1 / 2, {"quota": quotas.proportional, **RESTART}, times=2
    ),
    "drop_restart_twice": Setting(
        "DRoP, restart, 2x", "DRoP", 1 / 2, {"quota": quotas.drop, **RESTART}, times=2
    ),
}
DEFAULT = [name for name, setting in SETTINGS.items() if setting.times == 1]


# ------------------------------------------------------------------------------------------- one run


@dataclass(frozen=True)
class Plan:
    """How many epochs and optimiser steps make up a number of samples seen."""

    warmup_epochs: int
    epochs: int
    steps: int
    schedule_steps: int


def plan(setting: Setting, samples: int, train_size: int) -> Plan:
    samples *= setting.times
    warmup = samples if setting.warmup is None else round(setting.warmup * samples)
    warmup_epochs = warmup // train_size
    epochs, steps = 0, 0
    if setting.warmup is not None:
        if warmup_epochs < 1:
            raise SystemExit(
                f"--samples {samples}: the warm-up of {warmup} is less than one epoch of {train_size}."
            )
        epochs, steps = warmup_epochs, warmup_epochs * math.ceil(train_size / BATCH_SIZE)
        samples -= warmup_epochs * train_size
        train_size = round(DENSITY * train_size)
    after_epochs, rest = divmod(samples, train_size)
    after = after_epochs * math.ceil(train_size / BATCH_SIZE) + math.ceil(rest / BATCH_SIZE)
    return Plan(
        warmup_epochs,
        epochs + after_epochs + (rest > 0),
        steps + after,
        after if setting.restarts else steps + after,
    )


class Meter(L.Callback):
    """Counts the training samples and times the validation."""

    def __init__(self) -> None:
        self.samples, self.validation_seconds, self._start = 0, 0.0, 0.0

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.samples += len(batch[1])

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self._start = time.perf_counter()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.validation_seconds += time.perf_counter() - self._start


def run(
    name: str,
    seed: int,
    samples: int,
    data: Cifar10Small,
    precision: Any,
    runs: Path | None = None,
) -> dict[str, Any]:
    """Trains once and returns the line for the results file; `runs` gets a folder for the report."""
    setting = SETTINGS[name]
    assert data.train_set is not None
    train_size = len(data.train_set)
    todo = plan(setting, samples, train_size)
    L.seed_everything(seed, verbose=False)
    model, meter, prune = SmallCNN(total_steps=todo.schedule_steps), Meter(), None
    callbacks: list[L.Callback] = [meter]
    if setting.warmup is not None:
        prune = lfp.DataPruning(
            density=DENSITY, warmup_epochs=todo.warmup_epochs, seed=seed, **setting.prune
        )
        callbacks.append(prune)
    logger: Any = False
    if runs is not None:
        logger = CSVLogger(runs, name=name, version=f"seed{seed}")
        callbacks.append(lfp.RecallMonitor(class_names=NAMES))
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        precision=precision,
        max_epochs=todo.epochs,
        max_steps=todo.steps,
        callbacks=callbacks,
        logger=logger,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    wall, cpu = time.perf_counter(), time.process_time()
    trainer.fit(model, datamodule=data)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    recall = test_recall(model, data)
    if runs is not None:
        trainer.test(model, datamodule=data, verbose=False)
    return {
        "method": name,
        "seed": seed,
        "samples": samples,
        "train_size": train_size,
        "settings": {
            "density": DENSITY if prune else 1.0,
            "warmup_epochs": todo.warmup_epochs if prune else 0,
            **{key: getattr(value, "__name__", value) for key, value in setting.prune.items()},
        },
        "average": round(recall.mean().item(), 6),
        "worst": round(recall.min().item(), 6),
        "gap": round((recall.max() - recall.min()).item(), 6),
        "std": round(recall.std(correction=0).item(), 6),
        "recall": [round(value, 4) for value in recall.tolist()],
        "quota": None if prune is None or prune.quota is None else prune.quota.tolist(),
        "samples_seen": meter.samples,
        "steps": trainer.global_step,
        "epochs": todo.epochs,
        "seconds": round(wall, 2),
        "cpu_seconds": round(cpu, 2),
        "validation_seconds": round(meter.validation_seconds, 2),
    }


@torch.no_grad()
def test_recall(model: SmallCNN, data: Cifar10Small) -> Tensor:
    """Returns the recall of every class on the half of the test set that training never looked at."""
    model.eval()
    right, support = torch.zeros(2, len(NAMES), dtype=torch.float64)
    for images, labels in data.test_dataloader():
        correct = model(normalise(images)).argmax(1) == labels
        right.index_add_(0, labels, correct.double())
        support.index_add_(0, labels, torch.ones(len(labels), dtype=torch.float64))
    recall: Tensor = right / support
    return recall


# ------------------------------------------------------------------------------------------- results


def read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def append(path: Path, line: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # One write in append mode, so that two processes can share the file.
    text = json.dumps(line, default=repr) + "\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def by_method(lines: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    groups: dict[str, list[dict[str, Any]]] = {name: [] for name in SETTINGS}
    for line in lines:
        groups.setdefault(line["method"], []).append(line)
    return {name: group for name, group in groups.items() if group}


def spread(group: list[dict[str, Any]], key: str) -> tuple[float, float, float]:
    """Returns mean, minimum and maximum over the seeds."""
    values = [line[key] for line in group]
    return sum(values) / len(values), min(values), max(values)


def table(lines: Iterable[dict[str, Any]]) -> str:
    """Returns the markdown table: mean [min, max] over the seeds."""
    columns = ("average", "worst", "gap", "std")
    rows = [
        "| setting | seeds | "
        + " | ".join(columns)
        + " | samples seen | s | s without validation |",
        "|---|--:|" + "--:|" * (len(columns) + 3),
    ]
    for name, group in by_method(lines).items():
        cells = ["{:.3f} [{:.3f}, {:.3f}]".format(*spread(group, key)) for key in columns]
        seconds, validation = spread(group, "seconds")[0], spread(group, "validation_seconds")[0]
        seen = round(spread(group, "samples_seen")[0])
        rows.append(
            f"| {name} | {len(group)} | {' | '.join(cells)} | {seen:,} | {seconds:.0f} | {seconds - validation:.0f} |"
        )
    return "\n".join(rows)


COLOURS = {
    "all data": "#000000",
    "random": "#767676",
    "EL2N": "#b8860b",
    "DRoP": "#0072b2",
    "Minimax": "#d55e00",
}


def figure(lines: Iterable[dict[str, Any]], path: Path) -> None:
    """Draws average against worst-class recall: a point per setting, bars from lowest to highest seed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(
        {
            "font.size": 9,
            "svg.fonttype": "none",
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    )
    fig, axes = plt.subplots(figsize=(8, 5.6), layout="constrained")
    points: list[tuple[float, float, str, str]] = []
    for name, group in by_method(lines).items():
        setting = SETTINGS[name]
        colour = COLOURS[setting.family]
        (x, x_low, x_high), (y, y_low, y_high) = spread(group, "average"), spread(group, "worst")
        axes.errorbar(
            x, y, xerr=[[x - x_low], [x_high - x]], yerr=[[y - y_low], [y_high - y]], fmt="none",
            ecolor=colour, elinewidth=0.8, alpha=0.3,
        )  # fmt: skip
        marker = "s" if setting.restarts else "o"
        axes.plot(x, y, marker, color=colour, markersize=6.5, markeredgecolor="white", zorder=3)
        points.append((x, y, setting.label, colour))
    axes.set_xlabel("average recall (held-out half of the test set)")
    axes.set_ylabel("worst-class recall")
    axes.grid(alpha=0.2, linewidth=0.6)
    axes.margins(0.12, 0.1)
    place_labels(axes, points)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    fig.savefig(temporary, format=path.suffix[1:], dpi=160)
    os.replace(temporary, path)
    plt.close(fig)


def place_labels(axes: Any, points: list[tuple[float, float, str, str]]) -> None:
    """Writes each label near its point, where it covers the fewest labels, points and leader lines."""
    figure = axes.figure
    figure.canvas.draw()
    pixel = figure.dpi / 72
    centres = [axes.transData.transform((x, y)) for x, y, _, _ in points]
    frame = axes.get_window_extent()
    sizes = []
    for _, _, label, _ in points:
        text = axes.text(0, 0, label, fontsize=8)
        box = text.get_window_extent()
        sizes.append((box.width, box.height))
        text.remove()

    def candidates(i: int) -> list[tuple[float, ...]]:
        (x, y), (width, height) = centres[i], sizes[i]
        found: list[tuple[float, ...]] = []
        for distance in (7, 12, 20, 30, 42, 56, 72):
            for turn in range(24):
                angle = 2 * math.pi * turn / 24
                dx, dy = math.cos(angle), math.sin(angle)
                # The label's box touches the circle around the point with the side that faces it.
                left = x + dx * distance * pixel - width * (1 - dx) / 2
                bottom = y + dy * distance * pixel - height * (1 - dy) / 2
                found.append((left, bottom, left + width, bottom + height, distance))
        return found

    def leader(i: int, box: tuple[float, ...]) -> list[tuple[float, float]]:
        (x, y), (left, bottom, right, top) = centres[i], box[:4]
        end = (min(max(x, left), right), min(max(y, bottom), top))
        return [(x + (end[0] - x) * t / 12, y + (end[1] - y) * t / 12) for t in range(1, 12)]

    def inside(point: tuple[float, float], box: tuple[float, ...], margin: float) -> bool:
        return (
            box[0] - margin < point[0] < box[2] + margin
            and box[1] - margin < point[1] < box[3] + margin
        )

    def cost(i: int, box: tuple[float, ...], others: dict[int, tuple[float, ...]]) -> float:
        total: float = box[4] / 5
        total += 200 * (
            box[0] < frame.x0 or box[2] > frame.x1 or box[1] < frame.y0 or box[3] > frame.y1
        )
        total += sum(40 * inside(c, box, 5 * pixel) for c in centres)
        own = leader(i, box)
        for j, other in others.items():
            apart = box[2] < other[0] or other[2] < box[0] or box[3] < other[1] or other[3] < box[1]
            total += 100 * (not apart)
            total += 30 * any(inside(p, other, 1) for p in own)
            total += 30 * any(inside(p, box, 1) for p in leader(j, other))
        for j, c in enumerate(centres):
            total += 20 * (j != i and any(math.dist(p, c) < 5 * pixel for p in own))
        return total

    placed: dict[int, tuple[float, ...]] = {}
    for _ in range(4):  # later rounds move labels that others, placed afterwards, got in the way of
        for i in range(len(points)):
            others = {j: box for j, box in placed.items() if j != i}
            placed[i] = min(candidates(i), key=lambda box: cost(i, box, others))
    for i, box in placed.items():
        x, y, label, colour = points[i]
        axes.annotate(
            label, (x, y), ((box[0] - centres[i][0]) / pixel, (box[1] - centres[i][1]) / pixel),
            textcoords="offset points", color=colour, fontsize=8, va="bottom", ha="left",
        )  # fmt: skip
        if box[4] > 12:
            (x0, y0), (x1, y1) = axes.transData.inverted().transform(
                (centres[i], leader(i, box)[-1])
            )
            axes.plot(
                (x0, x1),
                (y0, y1),
                color=colour,
                linewidth=0.6,
                alpha=0.6,
                scalex=False,
                scaley=False,
            )


# --------------------------------------------------------------------------------------------- main


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data",
        type=Path,
        default=os.environ.get("FAIRPRUNE_DATA"),
        help="root folder of the data; default: $FAIRPRUNE_DATA",
    )
    parser.add_argument("--cache", type=Path, help="folder for the decoded images")
    parser.add_argument(
        "--methods",
        default=",".join(DEFAULT),
        help=f"what to train, tabulate or draw; default: all but the last two of {', '.join(SETTINGS)}",
    )
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument(
        "--samples", type=int, default=400_000, help="training samples seen in a run"
    )
    parser.add_argument(
        "--train-size", type=int, help="train on so many images only, for a quick try"
    )
    parser.add_argument(
        "--precision",
        default="bf16-mixed",
        help="of the Trainer; 32-true where the CPU has no bfloat16 units",
    )
    parser.add_argument("--shard", default="0/1", help="i/n: every n-th run, beginning with run i")
    parser.add_argument("--out", type=Path, default=Path("one_fit.jsonl"))
    parser.add_argument(
        "--runs", type=Path, help="folder for a log of every run, for `fairprune report`"
    )
    parser.add_argument("--table", action="store_true", help="print the table of --out and stop")
    parser.add_argument("--figure", type=Path, help="draw the results of --out and stop")
    arguments = parser.parse_args()
    methods = arguments.methods.split(",")
    unknown = [name for name in methods if name not in SETTINGS]
    if unknown:
        raise SystemExit(f"--methods {','.join(unknown)}: the settings are {', '.join(SETTINGS)}.")
    if arguments.table or arguments.figure:
        lines = [line for line in read(arguments.out) if line["method"] in methods]
        if not lines:
            raise SystemExit(f"{arguments.out} holds no results.")
        if arguments.table:
            print(table(lines))
        if arguments.figure:
            figure(lines, arguments.figure)
        return
    train_all(arguments, methods)


def train_all(arguments: argparse.Namespace, methods: list[str]) -> None:
    if arguments.data is None:
        print("skipped: no data; set FAIRPRUNE_DATA or --data to the root folder of CIFAR-10.")
        return
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # The schedule is told its length by plan(), so that the model knows nothing of the library.
    warnings.filterwarnings("ignore", message=".*planned_stepping_batches.*")
    data = Cifar10Small(arguments.data, arguments.cache, train_size=arguments.train_size)
    try:
        data.setup("fit")
    except MissingDataError as error:
        print(f"skipped: {error}")
        return
    shard, shards = map(int, arguments.shard.split("/"))
    # Seed by seed, so that a table of all settings exists early.
    jobs = [(name, int(seed)) for seed in arguments.seeds.split(",") for name in methods][
        shard::shards
    ]
    for name, seed in jobs:
        assert data.train_set is not None
        key = {
            "method": name,
            "seed": seed,
            "samples": arguments.samples,
            "train_size": len(data.train_set),
        }
        if any(key.items() <= {k: line[k] for k in key}.items() for line in read(arguments.out)):
            continue
        line = run(name, seed, arguments.samples, data, arguments.precision, arguments.runs)
        append(arguments.out, line)
        print(
            f"{name} seed {seed}: average {line['average']:.3f} worst {line['worst']:.3f} "
            f"std {line['std']:.3f}, {line['samples_seen']:,} samples in {line['seconds']:.0f} s "
            f"({line['validation_seconds']:.0f} s validation)",
            flush=True,
        )


if __name__ == "__main__":
    main()
