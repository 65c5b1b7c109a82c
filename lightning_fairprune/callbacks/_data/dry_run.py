"""Prints what pruning would do, without training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from lightning_fairprune._loading.labels import LABEL_KEYS, guesses, is_label, label_in
from lightning_fairprune._loading.position import limited
from lightning_fairprune._observe.moves import MOVE
from lightning_fairprune._observe.needs import required_signals
from lightning_fairprune._observe.recorder import EpochRecorder
from lightning_fairprune.callbacks._data.discovery import SIGNALS
from lightning_fairprune.callbacks._data.run import PruningRun

_MOST_ROWS = 40


def dry_run(run: PruningRun, trainer: pl.Trainer) -> None:
    """Prints kept samples per class, memory and steps, and stops the Trainer."""
    source = run.source
    target = _known(source.dataset)
    if target is None:
        target = _read_labels(source.in_order())
    sizes = torch.bincount(target)
    recall = _assumed(run.settings.dry_run, len(sizes))
    budget = run.decision.budget(len(target))
    quota = run.decision.quotas(sizes, recall, budget) if run.settings.quota is not None else None
    _print(run, trainer, sizes, recall, quota, budget)
    # The Trainer honours should_stop only once the minima are met.
    trainer.fit_loop.min_epochs = 0
    trainer.fit_loop.epoch_loop.min_steps = None
    trainer.should_stop = True


def _known(dataset: Any) -> Tensor | None:
    """Returns labels that the data set has in memory, unless its samples have others."""
    said = [(is_label(labels, dataset), labels) for labels in guesses(dataset)]
    sure = [labels for is_so, labels in said if is_so]
    maybe = [labels for is_so, labels in said if is_so is None]
    return next(iter(sure + maybe), None)


def _assumed(given: bool | Sequence[float], num_classes: int) -> Tensor:
    if isinstance(given, bool):
        return torch.full((num_classes,), 0.5, dtype=torch.float64)
    if len(given) != num_classes:
        raise ValueError(
            f"`dry_run` must give one recall for each of {num_classes} classes, got {len(given)}."
        )
    return torch.tensor(given, dtype=torch.float64)


def _read_labels(loader: Any) -> Tensor:
    """Returns every sample's label by reading all batches once."""
    batches = track(loader, description="reading labels", transient=True)
    return torch.cat([_labels_in(batch) for batch in batches])


def _labels_in(batch: Any) -> Tensor:
    found = label_in(batch)
    if not isinstance(found, Tensor) or found.ndim != 1 or found.is_floating_point():
        raise ValueError(
            "a dry run must know the labels, but the data set has no `targets`, and a batch "
            f"({type(batch).__name__}) has no class indices as its second element or under "
            f"{', '.join(LABEL_KEYS)}: add one of them."
        )
    return found.long()


@rank_zero_only
def _print(
    run: PruningRun,
    trainer: pl.Trainer,
    sizes: Tensor,
    recall: Tensor,
    quota: Tensor | None,
    budget: int,
) -> None:
    total = int(sizes.sum())
    console = Console()
    table = Table(title=f"DataPruning: would keep {budget} of {total} samples")
    for name in ("class", "size", "assumed recall", "kept", "density"):
        table.add_column(name, justify="right")
    shown = min(len(sizes), _MOST_ROWS)
    for k in range(shown if quota is not None else 0):
        size, kept = int(sizes[k]), int(quota[k])  # type: ignore[index]
        density = f"{kept / size:.3f}" if size else "-"
        table.add_row(str(k), str(size), f"{recall[k]:.3f}", str(kept), density)
    if shown < len(sizes):
        table.caption = f"the first {shown} of {len(sizes)} classes"
    if quota is None:
        table.caption = "without quotas the score decides how many samples each class keeps"
    console.print(table)
    for line in _costs(run, trainer, sizes, budget):
        console.print(line)


def _costs(run: PruningRun, trainer: pl.Trainer, sizes: Tensor, budget: int) -> list[str]:
    source, warmup, total = run.source, run.warmup, int(sizes.sum())
    names: Sequence[str] = ()
    if run.settings.score is not None and run.settings.score_pass is None:
        names = required_signals(run.settings.score, num_epochs=warmup)
    if run.settings.discovered is not None:
        names = tuple(dict.fromkeys((*names, *SIGNALS)))
    recorder = EpochRecorder(1, names, grouped=run.settings.labelled is not None)
    each = recorder.device_bytes + (4 * len(sizes) if MOVE in names else 0)
    full = limited(source.num_batches(total), trainer)
    short = limited(source.num_batches(budget), trainer)
    lines = [
        f"recorded signals: {', '.join(names) or 'labels only'}; "
        f"{each} bytes a sample on the device, {each * total / 2**20:.1f} MiB",
        f"batches an epoch (per rank): {full} in {warmup} warm-up epochs, then {short}",
    ]
    epochs = trainer.max_epochs
    if epochs is not None and epochs > 0:
        ran = warmup * full + (epochs - warmup) * short
        lines.append(
            f"batches in {epochs} epochs: {ran}, {ran / (epochs * full):.0%} of the {epochs * full} "
            "without pruning"
        )
    return lines
