"""Average against worst class on CIFAR-10, each model also along logit offsets fitted on validation data.

Every setting trains a ResNet-9 of 412,954 weights from scratch until it has seen equally many images: 343,040 of
balanced CIFAR-10, 245,760 of the long-tailed one (5,000 down to 50 a class). Quotas and offsets read one half of the
test images, results are of the other half.

    python benchmarks/frontier.py --data ROOT --out results.jsonl --settings balanced/all balanced/drop --seeds 0 1 2
    python benchmarks/frontier.py --out results.jsonl --table          # no training

A run that the results file has is skipped. On two cores start it twice, with `--shard 0/2` and `--shard 1/2`.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import time
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from _frontier import BATCH_SIZE, SAMPLES, SETTINGS, WARMUP, Data, recall_of
from torch import Tensor

import lightning_fairprune as lfp
from lightning_fairprune import statistics
from lightning_fairprune.experiments.models import Classifier, ResNet9, SmallCNN

NETWORKS = {"resnet9": ResNet9, "small": SmallCNN}


def run(name: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Trains once; returns the line for the results file and leaves the logits in `--logits`."""
    kind, key = name.split("/")
    setting = SETTINGS[key]
    data = Data(args.data, args.cache, kind == "longtail", setting.sampler)
    data.setup("fit")
    L.seed_everything(seed, verbose=False)
    module = Classifier(
        NETWORKS[args.network], lr=0.4, nesterov=True, schedule="triangle", rise=0.2
    )
    steps, size = SAMPLES[kind] // BATCH_SIZE, len(data.train_set)
    callbacks: list[L.Callback] = []
    epochs, prune = -(-steps // (size // BATCH_SIZE)), None
    if setting.prune is not None:
        options, warmup = dict(setting.prune), WARMUP[kind]
        if setting.make is not None:
            options["quota"] = setting.make()
            callbacks.append(options["quota"])
        prune = lfp.DataPruning(warmup_epochs=warmup, seed=seed, **options)
        callbacks.append(prune)
        kept = round(options["density"] * size) // BATCH_SIZE
        epochs = warmup + -(-(steps - warmup * (size // BATCH_SIZE)) // kept)
    trainer = L.Trainer(
        accelerator="cpu",
        precision="bf16-mixed",
        max_epochs=epochs,
        max_steps=steps,
        callbacks=callbacks,
        logger=False,
        limit_val_batches=1.0 if prune is not None else 0.0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    start = time.perf_counter()
    trainer.fit(module, datamodule=data)
    seconds = time.perf_counter() - start
    val, test = (
        predict(module, data, loader) for loader in (data.val_dataloader(), data.test_dataloader())
    )
    folder = Path(args.logits)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"val": val, "test": test}, folder / f"{args.network}-{kind}-{key}-{seed}.pt")
    recall = recall_of(*test)
    return {
        "network": args.network,
        "setting": name,
        "seed": seed,
        "samples_seen": trainer.global_step * BATCH_SIZE,
        "epochs": trainer.current_epoch,
        "average": round(float(recall.mean()), 4),
        "worst": round(float(recall.min()), 4),
        "recall": [round(value, 4) for value in recall.tolist()],
        "quota": None if prune is None or prune.quota is None else prune.quota.tolist(),
        "seconds": round(seconds, 1),
    }


@torch.no_grad()
def predict(module: Classifier, data: Data, loader: Any) -> tuple[Tensor, Tensor]:
    """Returns logits [N, K] and labels [N]."""
    module.eval()
    logits, labels = [], []
    for images, target in loader:
        with torch.autocast("cpu", torch.bfloat16):
            logits.append(module(data._normalised(images)).float())
        labels.append(target)
    return torch.cat(logits), torch.cat(labels)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def append(path: Path, line: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(descriptor, (json.dumps(line) + "\n").encode())
    finally:
        os.close(descriptor)


# Offsets may cost this much of the validation half's average recall; the first number is the weak, the second the
# stronger column of the tables.
LOSSES = (0.005, 0.02)
ALONG = (0.0, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05)


def with_offsets(path: Path) -> list[list[float]]:
    """Returns (allowed loss, average, worst) on the test half, of offsets fitted on the validation half."""
    from lightning_fairprune import offsets

    saved = torch.load(path, weights_only=True)
    points = []
    for loss in ALONG:
        offset = offsets.fit(*saved["val"], max_average_loss=loss)
        recall = recall_of(saved["test"][0] + offset, saved["test"][1])
        points.append([loss, round(float(recall.mean()), 4), round(float(recall.min()), 4)])
    return points


def fit_offsets(out: Path, folder: Path) -> None:
    """Adds the points along the offsets to all lines whose logits are in `folder`."""
    lines = read(out)
    for line in lines:
        path = folder / "{}-{}-{}.pt".format(
            line["network"], line["setting"].replace("/", "-"), line["seed"]
        )
        if path.exists():
            line["offsets"] = with_offsets(path)
    part = out.with_suffix(".part")
    part.write_text("".join(json.dumps(line) + "\n" for line in lines))
    os.replace(part, out)


Grouped = dict[str, dict[int, dict[str, Any]]]


def grouped(lines: list[dict[str, Any]], network: str) -> Grouped:
    """Returns the lines by setting and seed, in the order of the settings."""
    found: Grouped = {}
    order = {name: i for i, name in enumerate(SETTINGS)}
    lines = [line for line in lines if line["network"] == network]
    for line in sorted(lines, key=lambda line: order[line["setting"].split("/")[1]]):
        found.setdefault(line["setting"], {})[line["seed"]] = line
    return found


def pairs(line: dict[str, Any]) -> list[tuple[float, float]]:
    """Returns (average, worst): plain, then with the weak and the stronger offsets."""
    along = {loss: (average, worst) for loss, average, worst in line["offsets"]}
    return [(line["average"], line["worst"]), *(along[loss] for loss in LOSSES)]


def interval(values: list[float]) -> str:
    """Returns mean and half the width of the 95 % t interval over seeds, in points."""
    mean = 100 * sum(values) / len(values)
    if len(values) < 2:
        return f"{mean:+.1f}"
    return f"{mean:+.1f} ± {100 * float(statistics.half_widths(values)):.1f}"


def table(lines: list[dict[str, Any]], kind: str, network: str) -> str:
    """Returns average / worst, means over seeds, and each setting's lead over the first at equal seeds."""
    rows = [
        "| setting | seeds | plain | offsets, weak | offsets, stronger | worst, plain | worst, weak | worst, stronger |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    found = {k: v for k, v in grouped(lines, network).items() if k.startswith(kind)}
    base = found.get(f"{kind}/all", {})
    for name, runs in found.items():
        columns = list(zip(*(pairs(line) for line in runs.values()), strict=True))
        cells = [
            "/".join(f"{sum(p[i] for p in column) / len(column):.3f}" for i in (0, 1))
            for column in columns
        ]
        both = [seed for seed in runs if seed in base]
        leads = [
            interval([pairs(runs[seed])[i][1] - pairs(base[seed])[i][1] for seed in both])
            if both
            else ""
            for i in range(3)
        ]
        label = SETTINGS[name.split("/")[1]].label
        rows.append(f"| {label} | {len(runs)} | {' | '.join(cells)} | {' | '.join(leads)} |")
    return "\n".join(rows)


def best_at(line: dict[str, Any], average: float) -> float:
    """Returns the highest worst recall among the model's points of at least that average; NaN if there is none."""
    points = [(line["average"], line["worst"]), *((a, w) for _, a, w in line["offsets"])]
    return max((w for a, w in points if a >= average), default=float("nan"))


def at_equal_average(
    lines: list[dict[str, Any]], kind: str, network: str, name: str, base: str
) -> str:
    """Returns the lead in worst recall of one setting over another where both give up as much average."""
    found = grouped(lines, network)
    ours, theirs = found.get(f"{kind}/{name}", {}), found.get(f"{kind}/{base}", {})
    cells = []
    for given in (0.005, 0.01, 0.02, 0.03):
        leads = []
        for seed in sorted(set(ours) & set(theirs)):
            average = max(a for _, a, _ in theirs[seed]["offsets"]) - given
            lead = best_at(ours[seed], average) - best_at(theirs[seed], average)
            if lead == lead:
                leads.append(lead)
        cells.append(f"{interval(leads)} ({len(leads)})" if leads else "not reached")
    label, other = SETTINGS[name].label, SETTINGS[base].label
    return f"| {label} over {other} | {' | '.join(cells)} |"


def figure(
    lines: list[dict[str, Any]], kinds: list[str], network: str, names: list[str], path: Path
) -> None:
    """Draws average against worst recall: the plain models as points, their offsets as lines, means over seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    chart, axes = plt.subplots(
        1, len(kinds), figsize=(5.2 * len(kinds), 4.4), layout="constrained", squeeze=False
    )
    for axis, kind in zip(axes[0], kinds, strict=True):
        found = grouped(lines, network)
        for i, name in enumerate(names):
            if f"{kind}/{name}" not in found:
                continue
            runs, colour = list(found[f"{kind}/{name}"].values()), COLOURS[i % len(COLOURS)]
            along = [[run["offsets"][j][1:] for run in runs] for j in range(len(ALONG))]
            line = [[sum(p[c] for p in points) / len(points) for points in along] for c in (0, 1)]
            axis.plot(*line, color=colour, linewidth=1.6, label=SETTINGS[name].label)
            for run in runs:
                axis.plot(
                    *zip(*(p[1:] for p in run["offsets"]), strict=True),
                    color=colour,
                    linewidth=0.6,
                    alpha=0.35,
                )
            plain = [sum(run[key] for run in runs) / len(runs) for key in ("average", "worst")]
            axis.plot(
                *plain,
                MARKERS[i % len(MARKERS)],
                color=colour,
                markersize=7,
                markeredgecolor="white",
                zorder=3,
            )
        axis.set(
            xlabel="average recall (test half)",
            ylabel="recall of the worst class",
            title=TITLES[kind],
        )
        axis.grid(alpha=0.2, linewidth=0.6)
        axis.legend(frameon=False, fontsize=8)
    part = path.with_name(f".{path.name}.part")
    chart.savefig(part, format=path.suffix[1:], dpi=150)
    os.replace(part, path)
    plt.close(chart)


COLOURS = ("#222222", "#999999", "#0072B2", "#D55E00", "#CC79A7", "#E69F00", "#009E73")
MARKERS = "osPD^vX"
TITLES = {"balanced": "CIFAR-10", "longtail": "CIFAR-10, 5,000 down to 50 images a class"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="data")
    parser.add_argument("--cache", default="runs/cache")
    parser.add_argument("--logits", default="runs/frontier")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--network", choices=list(NETWORKS), default="resnet9")
    parser.add_argument("--settings", nargs="*", default=[])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--shard", default="0/1")
    parser.add_argument(
        "--offsets", action="store_true", help="fit offsets to the logits in --logits"
    )
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--figure", type=Path)
    parser.add_argument(
        "--show", nargs="*", default=["all", "sampler", "random", "drop", "minimax", "drop5"]
    )
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    shard, shards = map(int, args.shard.split("/"))
    todo = [(name, seed) for seed in args.seeds for name in args.settings]
    for name, seed in todo[shard::shards]:
        key = {"network": args.network, "setting": name, "seed": seed}
        if any(key.items() <= line.items() for line in read(args.out)):
            continue
        line = run(name, seed, args)
        append(args.out, line)
        print(name, seed, line["average"], line["worst"], line["seconds"], flush=True)
    if args.offsets:
        fit_offsets(args.out, Path(args.logits))
    lines = [line for line in read(args.out) if "offsets" in line]
    kinds = [
        k
        for k in TITLES
        if any(line["setting"].startswith(k) and line["network"] == args.network for line in lines)
    ]
    if args.table:
        for kind in kinds:
            print(f"\n{TITLES[kind]}, {args.network}\n\n{table(lines, kind, args.network)}\n")
            print("Lead in worst recall where both give up as much average, in points:\n")
            print("| | .5 | 1 | 2 | 3 |\n|---|--:|--:|--:|--:|")
            for base in ("all", "sampler", "random"):
                for name in SETTINGS:
                    if {f"{kind}/{name}", f"{kind}/{base}"} <= set(
                        grouped(lines, args.network)
                    ) and name != base:
                        print(at_equal_average(lines, kind, args.network, name, base))
    if args.figure is not None:
        figure(lines, kinds, args.network, args.show, args.figure)


if __name__ == "__main__":
    main()
