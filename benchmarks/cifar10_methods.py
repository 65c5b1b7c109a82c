"""Ten ways to prune CIFAR-10 to 30 %, alone and under DRoP quotas: what do they cost the worst class?

The papers' protocol in small. For each seed a query model is trained on all data (`--query-epochs`); it gives
the recalls, the training dynamics, and in scoring passes EL2N and GraNd (after a quarter of its training) and
features (after all of it). Each method then picks its samples, and a new network is trained on them from
scratch until it has seen `--samples` images; so every final model costs the same arithmetic. Quotas read the
recalls of one half of the test images; the numbers reported are of the other half.

    python benchmarks/cifar10_methods.py --data ROOT --out results.jsonl --work FOLDER   # about 1 min a model
    python benchmarks/cifar10_methods.py --out results.jsonl --table                     # no training

A model that the results file already holds is not trained again. On two cores start it twice, with
`--shard 0/2` and `--shard 1/2`.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import shutil
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from _cifar10 import BATCH_SIZE, NAMES, Cifar10Small, MissingDataError, SmallCNN
from cifar10_one_fit import Meter, append, place_labels, read, spread, test_recall
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

import lightning_fairprune as lfp
from lightning_fairprune import geometry, gradients, quotas, scores

DENSITY = 0.3
WEIGHTED: dict[str, dict[str, Any]] = {
    "cdb_w": {},
    "cdb_w_drop": {"weights": lfp.weighting.cdb_w_drop},
    "cdb_w_drop_window3": {"weights": lfp.weighting.cdb_w_drop, "recall_window": 3},
}
WINDOW = (
    4  # epochs of a window of dynamic uncertainty; the paper's 10 are more than the query model has
)
SCORED = ("el2n", "grand", "forgetting", "dynunc", "k_center", "ssp", "ccs")
METHODS = (
    "full",
    "cdb_w",
    "cdb_w_drop",
    "cdb_w_drop_window3",
    "random",
    "random+drop",
    "balanced",
    *(f"{name}{under}" for name in SCORED for under in ("", "+drop")),
    "grand+strategyq",
    "forgetting+strategyq",
)


class WeightedCNN(SmallCNN):
    """The same network with its loss in a module, where ClassWeighting finds it."""

    def __init__(self, total_steps: int) -> None:
        super().__init__(total_steps)
        self.criterion = nn.CrossEntropyLoss()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        loss: Tensor = self.criterion(self(images), labels)
        return loss


# --------------------------------------------------------------------------------------- query model


def everything(dynamics: lfp.Dynamics) -> Tensor:
    """A score that has the warm-up record what all scores of this file need."""
    for name in ("correct", "margin", "p_true"):
        dynamics.signal(name)
    return dynamics.signal("p_true")[-1]


class Stop(L.Callback):
    """Ends the fit after the last epoch of the warm-up."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch + 1 == self.epochs:
            trainer.should_stop = True


def query(data: Cifar10Small, seed: int, epochs: int, folder: Path) -> None:
    """Trains the query model of one seed and leaves its recalls, dynamics, scores and features."""
    done = folder / "query.json"
    if done.exists():
        return
    shutil.rmtree(folder, ignore_errors=True)  # what a query model that was stopped left behind
    data.setup("fit")
    assert data.train_set is not None
    L.seed_everything(seed, verbose=False)
    steps = epochs * math.ceil(len(data.train_set) / BATCH_SIZE)
    model, monitor = SmallCNN(steps), lfp.RecallMonitor(class_names=NAMES)
    record = lfp.DataPruning(
        density=1.0, warmup_epochs=epochs, score=everything, quota=None, keep="hard", seed=seed
    )
    early = epochs // 4
    keeper = ModelCheckpoint(folder, "{epoch}", save_top_k=-1, every_n_epochs=early)
    start = time.perf_counter()
    trainer(epochs + 1, [record, monitor, Stop(epochs), keeper], folder).fit(model, data)
    seconds = {"query": time.perf_counter() - start}
    assert record.dynamics is not None
    record.dynamics.save(folder / "dynamics.safetensors")

    loader = DataLoader(data.train_set, batch_size=500)
    weights = [folder / f"epoch={early - 1}.ckpt"]
    tensors: dict[str, Tensor] = {}
    passes: dict[str, tuple[Callable[..., Tensor], list[Path]]] = {
        "el2n": (scores.el2n, weights),
        "grand": (gradients.grad_norm, weights),
        "features": (lambda features: keep(tensors, features), []),
    }
    for name, (score, checkpoints) in passes.items():
        start = time.perf_counter()
        found = lfp.score_pass(model, loader, score, checkpoints=checkpoints, progress=False)
        seconds[name] = time.perf_counter() - start
        tensors.setdefault(name, found)
    save_file(tensors, folder / "scores.safetensors")
    counts = monitor.counts["val"]
    facts = {"recall": counts.recall.tolist(), "seconds": seconds, "accuracy": float(counts.mean)}
    done.write_text(json.dumps(facts))


def keep(tensors: dict[str, Tensor], features: Tensor) -> Tensor:
    tensors["features"] = features
    return features[:, 0]


def trainer(epochs: int, callbacks: list[L.Callback], folder: Path, **more: Any) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        callbacks=callbacks,
        logger=False,
        default_root_dir=folder,
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
        precision="bf16-mixed",
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **more,
    )


# ---------------------------------------------------------------------------------------- selection


class Query:
    """What the query model of one seed left behind."""

    def __init__(self, folder: Path) -> None:
        self.dynamics = lfp.Dynamics.load(folder / "dynamics.safetensors")
        self.target = self.dynamics.target
        self.tensors = load_file(folder / "scores.safetensors")
        facts = json.loads((folder / "query.json").read_text())
        self.recall = torch.tensor(facts["recall"], dtype=torch.float64)
        self.seconds: dict[str, float] = facts["seconds"]


def pick(method: str, query: Query, seed: int) -> tuple[lfp.Selection, float]:
    """Returns the selection of a method, and the seconds it took with its own scoring pass."""
    name, _, under = method.partition("+")
    target, budget = query.target, round(DENSITY * len(query.target))
    start, before = time.perf_counter(), 0.0
    sizes = torch.bincount(target)
    wanted: int | Tensor = budget
    if name == "balanced":
        wanted = quotas.balanced(sizes, budget)
    if under == "drop":
        wanted = quotas.drop(sizes, query.recall, budget)
    if name in ("random", "balanced"):
        return lfp.select(target, wanted, seed=seed), time.perf_counter() - start
    if name in ("el2n", "grand"):
        score, before = query.tensors[name], query.seconds[name]
    elif name in ("k_center", "ssp"):
        before = query.seconds["features"]
        score = of_features(name, query.tensors["features"], target, wanted, seed)
    else:
        score = {
            "forgetting": scores.forgetting,
            "dynunc": partial(scores.dynamic_uncertainty, window=WINDOW),
            "ccs": scores.aum,
        }[name](query.dynamics)
    way = "stratified" if name == "ccs" else "hard"
    selection = lfp.select(target, wanted, score=score, keep=way, seed=seed)
    if under == "strategyq":
        selection = lfp.select(target, quotas.of_subset(target, selection.indices), seed=seed)
    return selection, before + time.perf_counter() - start


def of_features(
    name: str, features: Tensor, target: Tensor, wanted: int | Tensor, seed: int
) -> Tensor:
    if name == "ssp":
        return geometry.k_means_distance(features, len(NAMES), seed=seed)
    if isinstance(wanted, Tensor):
        return geometry.class_k_center(features, target, wanted)
    order = geometry.k_center(features, wanted)
    score = torch.full((len(features),), -1.0)
    score[order] = torch.arange(len(order), 0, -1.0)
    return score


# -------------------------------------------------------------------------------------- final model


def run(method: str, seed: int, samples: int, data: Cifar10Small, folder: Path) -> dict[str, Any]:
    """Trains one final model and returns the line for the results file."""
    known = Query(folder)
    selection, seconds = None, 0.0
    size = len(known.target)
    if method != "full" and method not in WEIGHTED:
        selection, seconds = pick(method, known, seed)
        size = len(selection)
    epochs, rest = divmod(samples, size)
    steps = epochs * math.ceil(size / BATCH_SIZE) + math.ceil(rest / BATCH_SIZE)
    L.seed_everything(100 + seed, verbose=False)
    model = WeightedCNN(steps) if method in WEIGHTED else SmallCNN(steps)
    meter, callbacks = Meter(), []
    if method in WEIGHTED:
        callbacks.append(lfp.ClassWeighting(loss="criterion", **WEIGHTED[method]))
    module = data if selection is None else lfp.FairPruneDataModule(data, selection, seed=seed)
    fit = trainer(
        epochs + (rest > 0),
        [meter, *callbacks],
        folder,
        max_steps=steps,
        limit_val_batches=1.0 if callbacks else 0,
    )
    start = time.perf_counter()
    fit.fit(model, datamodule=module)
    recall = test_recall(model, data)
    return {
        "method": method,
        "seed": seed,
        "samples": samples,
        "density": 1.0 if selection is None else DENSITY,
        "average": round(recall.mean().item(), 6),
        "worst": round(recall.min().item(), 6),
        "gap": round((recall.max() - recall.min()).item(), 6),
        "std": round(recall.std(correction=0).item(), 6),
        "recall": [round(value, 4) for value in recall.tolist()],
        "kept": None if selection is None else selection.quota.tolist(),
        "samples_seen": meter.samples,
        "seconds_to_select": round(seconds, 2),
        "seconds_of_query": round(known.seconds["query"], 1),
        "seconds": round(time.perf_counter() - start, 1),
    }


def table(lines: list[dict[str, Any]]) -> str:
    """Returns the markdown table: mean [min, max] over the seeds."""
    columns = ("average", "worst", "gap", "std")
    rows = [
        "| method | seeds | " + " | ".join(columns) + " | fewest kept of a class | s to select |",
        "|---|--:|" + "--:|" * (len(columns) + 2),
    ]
    for method in METHODS:
        group = [line for line in lines if line["method"] == method]
        if not group:
            continue
        cells = ["{:.3f} [{:.3f}, {:.3f}]".format(*spread(group, key)) for key in columns]
        fewest = "" if group[0]["kept"] is None else str(min(min(line["kept"]) for line in group))
        seconds = spread(group, "seconds_to_select")[0]
        rows.append(f"| {method} | {len(group)} | {' | '.join(cells)} | {fewest} | {seconds:.1f} |")
    return "\n".join(rows)


def figure(lines: list[dict[str, Any]], path: Path) -> None:
    """Draws average against worst-class recall: an arrow from each method to itself under DRoP quotas."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    where = {}
    for method in METHODS:
        group = [line for line in lines if line["method"] == method]
        if group:
            where[method] = (spread(group, "average")[0], spread(group, "worst")[0])
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    fig, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    colours = [matplotlib.colors.to_hex(colour) for colour in plt.get_cmap("tab10").colors]
    points = []
    for i, name in enumerate(("random", *SCORED)):
        if not {name, f"{name}+drop"} <= where.keys():
            continue
        start, end = where[name], where[f"{name}+drop"]
        style = {"arrowstyle": "->", "color": colours[i], "linewidth": 1.4, "shrinkB": 0}
        axes.annotate("", end, start, arrowprops=style)
        axes.plot(*start, "o", color=colours[i])
        axes.plot(*end, ",", color=colours[i])  # so that the axes reach to the head of the arrow
        # A label without text keeps the others off the head of the arrow.
        points += [(*start, name, colours[i]), (*end, "", colours[i])]
    for name in (
        "full",
        "balanced",
        "cdb_w_drop_window3",
        "grand+strategyq",
        "forgetting+strategyq",
    ):
        if name in where:
            axes.plot(*where[name], "s", color="#555555", markersize=4)
            points.append((*where[name], name, "#555555"))
    axes.set_xlabel("average recall (held-out half of the test set)")
    axes.set_ylabel("worst-class recall")
    axes.grid(alpha=0.2)
    axes.margins(0.1)
    place_labels(axes, points)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    fig.savefig(temporary, format=path.suffix[1:], dpi=160)
    temporary.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with CIFAR-10, see _cifar10.py")
    parser.add_argument("--cache", type=Path, help="folder for the decoded images")
    parser.add_argument(
        "--work", type=Path, help="folder for query models, their scores and features"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="results file, one JSON object a line"
    )
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--query-epochs", type=int, default=8)
    parser.add_argument("--samples", type=int, default=300_000)
    parser.add_argument("--train-size", type=int, help="so many images only, for a quick try")
    parser.add_argument("--shard", default="0/1", help="which part of the models, such as 0/2")
    parser.add_argument(
        "--table", action="store_true", help="print the table of what is there and stop"
    )
    parser.add_argument("--figure", type=Path, help="draw what is there and stop")
    given = parser.parse_args()
    if given.figure is not None:
        figure(read(given.out), given.figure)
        return
    if given.table:
        print(table(read(given.out)))
        return
    if given.data is None or given.work is None:
        raise SystemExit("--data and --work are needed to train; --table needs neither.")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # The schedule is told its length, so that the model knows nothing of the library.
    warnings.filterwarnings("ignore", message=".*planned_stepping_batches.*")
    torch.set_num_threads(1)
    part, parts = map(int, given.shard.split("/"))
    seeds = [int(seed) for seed in given.seeds.split(",")]
    # Processes share out the seeds first, so that each trains its own query model.
    jobs = [
        (seed, method)
        for i, seed in enumerate(seeds)
        for j, method in enumerate(given.methods)
        if (i if len(seeds) >= parts else j) % parts == part
    ]
    done = {(line["seed"], line["method"]) for line in read(given.out)}
    data = Cifar10Small(given.data, given.cache, given.train_size)
    for number, (seed, method) in enumerate(jobs, 1):
        if (seed, method) in done:
            continue
        folder = given.work / f"seed{seed}"
        try:
            query(data, seed, given.query_epochs, folder)
        except MissingDataError as error:
            raise SystemExit(str(error)) from None
        line = run(method, seed, given.samples, data, folder)
        append(given.out, line)
        print(
            f"{number}/{len(jobs)} {method} seed {seed}: average {line['average']:.3f}, worst "
            f"{line['worst']:.3f}, {line['seconds']:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
