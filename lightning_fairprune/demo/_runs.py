"""The runs of the demonstration, which differ only in the selection of the training data."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from torch import Tensor

from lightning_fairprune import quotas, scores
from lightning_fairprune.callbacks import DataPruning, RecallMonitor
from lightning_fairprune.counts import ClassCounts
from lightning_fairprune.demo._digits import (
    BATCH,
    NUM_TRAIN,
    LongTailedDigits,
    SmallCNN,
    train_sizes,
)

STEPS = 640
WARMUP_EPOCHS = 9  # 198 steps
# A pruned epoch has 6 batches: a validation after every third is cheap and lets the network adapt to
# new quotas.
VALIDATE_EVERY = 3
QUOTA = {"update_every": VALIDATE_EVERY}

QUIET: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "logger": False}
QUIET |= dict.fromkeys(
    ("enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
)

# Arguments of DataPruning; None trains on all data. Each epoch draws a new subset (the default), but
# the hardest samples stay the same.
METHODS: Mapping[str, Mapping[str, Any] | None] = {
    "full data": None,
    "random": {"quota": None},
    "EL2N": {"quota": None, "score": scores.el2n, "keep": "hard"},
    "random+DRoP": {"quota": quotas.drop, **QUOTA},
    "random+Minimax": {"quota": quotas.Minimax(), **QUOTA},
}


@dataclass(frozen=True, eq=False)
class Record:
    """One run.

    Args:
        method: its name in `METHODS`.
        seed: of split, initial weights and subsets.
        counts: class counts on the test images.
        kept: training images of each class in the last subset, int64 [K].
        sizes: training images of each class, int64 [K].
        samples_seen: training images seen, including repetitions.
        seconds: of training.
    """

    method: str
    seed: int
    counts: ClassCounts
    kept: Tensor
    sizes: Tensor
    samples_seen: int
    seconds: float


def run(
    density: float = 0.3,
    seeds: int = 3,
    *,
    methods: Sequence[str] = tuple(METHODS),
    steps: int = STEPS,
    console: Console | None = None,
) -> list[Record]:
    """Trains a small network on long-tailed digits with each method of data selection.

    All methods see equally many images: `steps` batches of 16, of which the 198 of the warm-up come
    from all the data. Split, initial weights and schedule of a seed are the same for all methods.
    Quotas read the recalls of validation images, the records hold those of test images.

    Args:
        density: fraction of the 352 training images to keep, at least one batch, at most 1.
        seeds: number of runs of each method, with seeds 0, 1, ...
        methods: names in `METHODS`.
        steps: optimiser steps of every run, more than the warm-up has.
        console: for the progress bar; None shows none.

    Returns:
        One `Record` for each method and seed, methods in their order.

    Raises:
        ValueError: If an argument is out of range.
        ImportError: If scikit-learn or matplotlib is not installed.
    """
    require_extras()
    check(density, seeds, methods, steps)
    columns = BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    progress: dict[str, Any] = {"console": console, "disable": console is None, "transient": True}
    records = []
    with Progress(TextColumn("{task.description}"), *columns, **progress) as bar, _quiet():
        task = bar.add_task("", total=len(methods) * seeds * steps)
        # Seeds in the outer loop: a slower machine affects all methods alike.
        for seed in range(seeds):
            for method in methods:
                bar.update(task, description=f"{method}, seed {seed + 1} of {seeds}".ljust(32))
                records.append(_train(method, density, seed, steps, lambda: bar.advance(task)))
    return sorted(records, key=lambda record: methods.index(record.method))


def require_extras() -> None:
    """Raises an ImportError before any work if a package is missing."""
    try:
        import matplotlib  # noqa: F401
        import sklearn  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"the demo needs scikit-learn and matplotlib, and {error.name} is not installed: "
            'pip install "lightning-fairprune[demo]".'
        ) from error


def check(density: float, seeds: int, methods: Sequence[str], steps: int) -> None:
    if not density * NUM_TRAIN >= BATCH or density > 1:
        least = BATCH / NUM_TRAIN
        raise ValueError(
            f"`density` must be at least {least:.3f}, one batch of {BATCH} out of {NUM_TRAIN} "
            f"images, and at most 1, got {density}."
        )
    if seeds < 1:
        raise ValueError(f"`seeds` must be at least 1, got {seeds}.")
    unknown = [method for method in methods if method not in METHODS]
    if unknown or not methods:
        raise ValueError(f"`methods` must be some of {', '.join(METHODS)}, got {list(methods)}.")
    warmup = WARMUP_EPOCHS * NUM_TRAIN // BATCH
    if steps <= warmup:
        raise ValueError(f"`steps` must be more than the {warmup} of the warm-up, got {steps}.")


def _train(
    method: str, density: float, seed: int, steps: int, advance: Callable[[], None]
) -> Record:
    arguments, prune = METHODS[method], None
    counter, monitor = _Counter(advance), RecallMonitor()
    if arguments is not None:
        prune = DataPruning(density, warmup_epochs=WARMUP_EPOCHS, seed=seed, **arguments)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, data = SmallCNN(), LongTailedDigits(seed)
        trainer = pl.Trainer(
            max_epochs=-1,
            max_steps=steps,
            callbacks=[counter] if prune is None else [counter, prune],
            check_val_every_n_epoch=VALIDATE_EVERY,
            num_sanity_val_steps=0,
            **QUIET,
        )
        start = time.perf_counter()
        trainer.fit(model, data)
        seconds = time.perf_counter() - start
        pl.Trainer(callbacks=[monitor], **QUIET).test(model, data, verbose=False)
    sizes = train_sizes()
    kept = sizes if prune is None or prune.selection is None else prune.selection.quota
    return Record(method, seed, monitor.counts["test"], kept, sizes, counter.seen, seconds)


class _Counter(pl.Callback):
    """Counts images and advances the progress bar."""

    def __init__(self, advance: Callable[[], None]) -> None:
        self.advance = advance
        self.seen = 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, i: int
    ) -> None:
        self.seen += len(batch[1])
        self.advance()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences Lightning and uses one thread: more are slower for 8x8 pixels."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_num_threads(threads)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
