"""CIFAR-10 in memory and a small convolutional network, both as anybody would write them for Lightning.

Nothing here knows of lightning_fairprune: what the benchmark shows is done to this module and this data
module from outside.
"""

from __future__ import annotations

import io
import itertools
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
BATCH_SIZE = 128
SPLIT_SEED = 0  # of the test set's halves; never the seed of the training
PAD = 4  # pixels; crops are shifted by at most this much

_MEAN = torch.tensor([125.3, 123.0, 113.9]).view(3, 1, 1)
_STD = torch.tensor([63.0, 62.1, 66.7]).view(3, 1, 1)
_SIZE = 32
# Source row of row i - PAD of a padded image: reflection at the border needs no padded copy.
_REFLECT = torch.tensor(
    [_SIZE - 1 - abs(_SIZE - 1 - abs(i)) for i in range(-PAD, _SIZE + PAD)], dtype=torch.int64
)


class MissingDataError(Exception):
    """The root folder holds CIFAR-10 in no form that is understood here."""


def read_cifar10(root: Path, part: str, cache: Path | None = None) -> tuple[Tensor, Tensor]:
    """Returns images uint8 [N,32,32,3] and labels int64 [N] of `part`, "train" or "test".

    Two forms are read: `cifar10/{part}.npz` with the images as JPEG files (`jpeg` uint8 end to end,
    `offsets` [N+1], `labels` [N]), and what `torchvision.datasets.CIFAR10(root, download=True)` leaves.
    With `cache`, the decoded images are kept there as `.npy` and read from there the next time.
    """
    archives = [
        path for path in (root / "cifar10" / f"{part}.npz", root / f"{part}.npz") if path.exists()
    ]
    if archives:
        with np.load(archives[0]) as archive:
            labels = archive["labels"].astype(np.int64)
            images = _cached(
                cache, part, labels, lambda: _decode(archive["jpeg"], archive["offsets"])
            )
        return torch.from_numpy(images), torch.from_numpy(labels)
    if (root / "cifar-10-batches-py").is_dir():
        from torchvision.datasets import CIFAR10  # type: ignore[import-untyped]

        dataset = CIFAR10(str(root), train=part == "train", download=False)
        return torch.from_numpy(dataset.data), torch.tensor(dataset.targets, dtype=torch.int64)
    raise MissingDataError(
        f"`{root}` must hold cifar10/{part}.npz or cifar-10-batches-py, found neither; fetch the data with "
        f"torchvision.datasets.CIFAR10(root, download=True)."
    )


def _decode(jpeg: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    from PIL import Image

    data = jpeg.tobytes()
    images = np.empty((len(offsets) - 1, _SIZE, _SIZE, 3), np.uint8)
    for i, (start, stop) in enumerate(itertools.pairwise(offsets)):
        images[i] = np.asarray(Image.open(io.BytesIO(data[start:stop])))
    return images


def _cached(
    cache: Path | None, part: str, labels: np.ndarray, decode: Callable[[], np.ndarray]
) -> np.ndarray:
    if cache is None:
        return decode()
    path = cache / f"cifar10-{part}-{len(labels)}.npy"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=cache, suffix=".npy", delete=False) as file:
            np.save(file, decode())
        os.replace(file.name, path)  # a reader never sees half a file
    images: np.ndarray = np.load(path)
    return images


def stratified_halves(labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Returns two disjoint index tensors, sorted, each with half of every class (rounded down, up)."""
    generator = torch.Generator().manual_seed(seed)
    first, second = [], []
    for k in range(len(NAMES)):
        members = (labels == k).nonzero().squeeze(1)
        members = members[torch.randperm(len(members), generator=generator)]
        first.append(members[: len(members) // 2])
        second.append(members[len(members) // 2 :])
    return torch.cat(first).sort().values, torch.cat(second).sort().values


def crop_and_flip(images: Tensor) -> Tensor:
    """Shifts every image of uint8 [B,32,32,3] by up to 4 pixels (reflected border), flips half of them."""
    batch = len(images)
    pixels, side = torch.arange(_SIZE), 2 * PAD + 1
    rows = _REFLECT[torch.randint(side, (batch, 1)) + pixels]
    columns = _REFLECT[torch.randint(side, (batch, 1)) + pixels]
    columns = torch.where(torch.rand(batch, 1) < 0.5, columns.flip(1), columns)
    # One gather of whole pixels, three times as fast as images[b, rows, columns].
    source = (torch.arange(batch)[:, None, None] * _SIZE + rows[:, :, None]) * _SIZE + columns[
        :, None, :
    ]
    return images.reshape(-1, 3).index_select(0, source.flatten()).view_as(images)


def normalise(images: Tensor) -> Tensor:
    """Returns float32 [B,3,32,32] in channels_last memory of images uint8 [B,32,32,3]."""
    return images.permute(0, 3, 1, 2).float().sub_(_MEAN).div_(_STD)


class Images(Dataset[tuple[Tensor, int]]):
    """Images and labels in memory; a whole batch is fetched with one indexing operation."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, int]]:
        index = torch.as_tensor(indices)
        return list(zip(self.images[index], self.labels[index].tolist(), strict=True))


class Cifar10Small(L.LightningDataModule):
    """CIFAR-10 with its test set cut in two: validation drives the quotas, the rest gives the final numbers.

    Both halves have 5,000 images, 500 a class, and are the same for every seed of the training.
    """

    def __init__(
        self, root: Path, cache: Path | None = None, train_size: int | None = None
    ) -> None:
        super().__init__()
        self.root, self.cache, self.train_size = root, cache, train_size
        self.train_set: Images | None = None

    def setup(self, stage: str) -> None:
        if self.train_set is not None:
            return
        images, labels = read_cifar10(self.root, "train", self.cache)
        if self.train_size is not None:
            generator = torch.Generator().manual_seed(SPLIT_SEED)
            part = torch.randperm(len(labels), generator=generator)[: self.train_size]
            images, labels = images[part], labels[part]
        self.train_set = Images(images, labels)
        images, labels = read_cifar10(self.root, "test", self.cache)
        first, second = stratified_halves(labels, SPLIT_SEED)
        self.val_set = Images(images[first], labels[first])
        self.test_set = Images(images[second], labels[second])

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        images, labels = batch
        if self.trainer is not None and self.trainer.training:
            images = crop_and_flip(images)
        return normalise(images), labels

    def train_dataloader(self) -> DataLoader[Any]:
        assert self.train_set is not None
        return DataLoader(self.train_set, batch_size=BATCH_SIZE, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.val_set, batch_size=500)

    def test_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.test_set, batch_size=500)


def _block(before: int, after: int, pool: nn.Module) -> nn.Sequential:
    convolution = nn.Conv2d(before, after, 3, padding=1, bias=False)
    return nn.Sequential(convolution, pool, nn.BatchNorm2d(after), nn.ReLU(inplace=True))


class SmallCNN(L.LightningModule):
    """Four 3x3 convolutions with batch normalisation, average pooling, a linear layer: 25,354 weights.

    Pooling sits between convolution and normalisation, so that the costly elementwise layers see a
    quarter of the pixels. The learning rate rises linearly over the first fifth of `total_steps` and
    falls linearly to 0. Learning rate, rise and weight decay were chosen on the full data, seed 0.
    """

    def __init__(
        self, total_steps: int, lr: float = 0.4, rise: float = 0.2, weight_decay: float = 5e-4
    ) -> None:
        super().__init__()
        self.total_steps, self.lr, self.rise = total_steps, lr, rise
        self.weight_decay = weight_decay
        self.net = nn.Sequential(
            _block(3, 16, nn.MaxPool2d(2)),
            _block(16, 24, nn.MaxPool2d(2)),
            _block(24, 32, nn.MaxPool2d(2)),
            _block(32, 48, nn.Identity()),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(48, len(NAMES)),
        ).to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(images)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        return F.cross_entropy(self(images), labels)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        logits = self(images)
        self.log("val/loss", F.cross_entropy(logits, labels))
        self.log("val/accuracy", (logits.argmax(1) == labels).float().mean())

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        self.log("test/loss", F.cross_entropy(self(images), labels))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(
            self.parameters(),
            lr=self.lr,
            momentum=0.9,
            nesterov=True,
            weight_decay=self.weight_decay,
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.lr_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def lr_factor(self, step: int) -> float:
        done = (step + 1) / (self.total_steps + 1)
        return max(0.0, min(done / self.rise, (1 - done) / (1 - self.rise)))
