"""What pruning holds: bytes per sample on the device while it records, and in checkpoints."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from _paired import QUIET
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_fairprune as lfp
from lightning_fairprune._observe.recorder import EpochRecorder

# What a recorder keeps on the host. Whatever else it comes to hold counts as the device's.
HOST = ("target", "group", "_rows", "_observed")
CLASSES = 10


def device_bytes(
    names: tuple[str, ...], *, grouped: bool, epochs: int, samples: tuple[int, int]
) -> list[tuple[float, float]]:
    """Returns bytes per sample and bytes besides, held on the device after each epoch's last batch.

    Recorders of two numbers of samples tell what grows with them from the batches that wait.

    Args:
        names: signals recorded.
        grouped: whether groups are.
        epochs: how many to record.
        samples: two numbers of samples.
    """
    held = [_held(names, grouped, epochs, n) for n in samples]
    few, many = samples
    slopes = [(b - a) / (many - few) for a, b in zip(*held, strict=True)]
    return [(slope, a - slope * few) for slope, a in zip(slopes, held[0], strict=True)]


def _held(names: tuple[str, ...], grouped: bool, epochs: int, n: int) -> list[int]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    recorder = EpochRecorder(n, names, grouped=grouped, device=device)
    target, logits = torch.arange(n) % CLASSES, torch.randn(n, CLASSES)
    found = []
    for epoch in range(epochs):
        # As many batches for every n: those that wait are the same, but for their size.
        for part in torch.arange(n).split(1000):
            rows = part.clone()  # a view would hold all of them
            group = target[rows].to(device) if grouped else None
            recorder.update(
                rows.to(device), logits[rows].to(device), target[rows].to(device), group
            )
        found.append(_bytes(recorder))
        recorder.finish_epoch(epoch)
        found[-1] = max(found[-1], _bytes(recorder))
    return found


def _bytes(recorder: EpochRecorder) -> int:
    held = {name: value for name, value in vars(recorder).items() if name not in HOST}
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in _tensors(held)}
    return sum(storage.nbytes() for storage in storages.values())


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from (tensor for part in value.values() for tensor in _tensors(part))
    elif isinstance(value, list | tuple):
        yield from (tensor for part in value for tensor in _tensors(part))


# --------------------------------------------------------------------------------- checkpoints


class _Linear(pl.LightningModule):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.n, self.layer = n, nn.Linear(2, CLASSES)

    def loader(self) -> Any:
        x = torch.zeros(self.n, 2)
        return DataLoader(TensorDataset(x, torch.arange(self.n) % CLASSES), 1000, shuffle=True)

    def train_dataloader(self) -> Any:
        return self.loader()

    def val_dataloader(self) -> Any:
        return self.loader()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return F.cross_entropy(self.layer(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        F.cross_entropy(self.layer(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.01)


class _Sizes(pl.Callback):
    """Writes a checkpoint in the middle and at the end of every epoch and notes how long it is."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.inside: list[int] = []
        self.ends: list[int] = []

    def _size(self, trainer: pl.Trainer) -> int:
        trainer.save_checkpoint(self.path)
        return self.path.stat().st_size

    def on_train_batch_end(self, trainer: Any, module: Any, out: Any, batch: Any, i: int) -> None:
        if i == trainer.num_training_batches // 2:
            self.inside.append(self._size(trainer))

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        self.ends.append(self._size(trainer))


def checkpoint_bytes(
    prune: Callable[[int], lfp.DataPruning], *, warmup: int, samples: int
) -> tuple[list[float], list[float]]:
    """Returns the bytes per sample that pruning adds to checkpoints inside and at the end of each epoch.

    The last epoch of the warm-up ends with the decision, so the checkpoint written then is the first
    that holds it. One more epoch follows.

    Args:
        prune: makes the callback for a warm-up of so many epochs.
        warmup: its length.
        samples: N.
    """
    with tempfile.TemporaryDirectory() as folder:
        sizes = []
        for callbacks in ([], [prune(warmup)]):
            written = _Sizes(Path(folder, "some.ckpt"))
            trainer = pl.Trainer(
                accelerator="cpu",
                devices=1,
                max_epochs=warmup + 1,
                callbacks=[*callbacks, written],
                limit_val_batches=1,
                **QUIET,
            )
            trainer.fit(_Linear(samples))
            sizes.append(written)
    plain, pruned = sizes
    inside, ends = (
        [
            (b - a) / samples
            for a, b in zip(getattr(plain, when), getattr(pruned, when), strict=True)
        ]
        for when in ("inside", "ends")
    )
    return inside, ends
