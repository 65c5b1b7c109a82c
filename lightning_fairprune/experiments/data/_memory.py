"""Images that are decoded once, kept in memory and augmented on the device."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from lightning_fairprune.experiments.data._augment import Border, normalise, shift_and_flip
from lightning_fairprune.experiments.data._module import ImageModule, Split, check_split
from lightning_fairprune.experiments.data._read import Part, cached, root_folder
from lightning_fairprune.experiments.data._split import long_tailed, stratified

_EVALUATION_BATCH = 500


class Images(Dataset[Any]):
    """Some rows of images in memory; a whole batch is fetched with one indexing operation.

    Args:
        images: uint8 [M, H, W, C].
        labels: int64 [M].
        rows: the N samples of this data set, int64 [N].

    Example:
        >>> data = Images(torch.zeros(3, 8, 8, 1), torch.tensor([2, 0, 1]), torch.tensor([0, 2]))
        >>> data.targets, data[1][1]
        (tensor([2, 1]), 1)
    """

    def __init__(self, images: Tensor, labels: Tensor, rows: Tensor) -> None:
        self.images, self.rows = images, rows
        self.targets = labels[rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[self.rows[index]], int(self.targets[index])

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        index = torch.as_tensor(indices)
        return self.images[self.rows[index]], self.targets[index]


def _collate(samples: Any) -> Any:
    """Lets a whole batch pass; wrappers of the data set may give a list of samples instead."""
    return samples if isinstance(samples, tuple) else default_collate(samples)


class _Plan(NamedTuple):
    """Which rows of which part each data set has."""

    parts: dict[str, Part]
    train: Tensor
    val: tuple[str, Tensor]
    test: Tensor


class ImagesInMemory(ImageModule):
    """Images in memory, augmented and normalised on the device; a subclass says how to read them.

    Batches are ``(images uint8 [B, H, W, C], labels int64 [B])`` until they are on the device, and
    float32 [B, C, H, W] from there. Only training batches of a Trainer are augmented.

    Args:
        root: folder of all data; by default $FAIRPRUNE_DATA, else ``data``.
        batch_size: of training.
        augment: whether training images are shifted and, where that keeps the class, mirrored.
        shift: at most so many pixels; None takes what is usual for the data.
        border: what comes in over the edge, the ``"reflect"``-ed image or ``"zero"`` (black).
        split: ``"paper"`` validates on half of the test set and tests on the other half, as Vysogorets
            et al. (2025) do; ``"clean"`` cuts validation from the training set and tests on all of the
            test set. Both are stratified.
        val_fraction: of each class of the training set, with ``split="clean"``.
        imbalance: makes the training set long-tailed, the largest class by the smallest, for example
            100; None leaves it as it is. Validation and test keep their proportions.
        split_seed: of the split and of the long tail; keep it while the seed of training varies.
        download: whether torchvision fetches what is missing.
        cache: folder that keeps the decoded images, shared between processes; None decodes each time.

    Attributes:
        train_set, val_set, test_set: after `setup`; each has `targets`, int64 [N].
        groups: None: these data sets have classes only.

    Raises:
        ValueError: If an argument is out of range, or the data is not what it should be.
        FileNotFoundError: At `setup`, if the data is not there.
    """

    folder: ClassVar[str]
    names: ClassVar[tuple[str, ...]]
    mean: ClassVar[tuple[float, ...]]  # of the training set's channels, in 0..255
    std: ClassVar[tuple[float, ...]]
    usual_shift: ClassVar[int] = 4
    flip: ClassVar[bool] = True

    def __init__(
        self,
        root: str | None = None,
        batch_size: int = 128,
        augment: bool = True,
        shift: int | None = None,
        border: Border = "reflect",
        split: Split = "paper",
        val_fraction: float = 0.1,
        imbalance: float | None = None,
        split_seed: int = 0,
        download: bool = False,
        cache: str | None = None,
    ) -> None:
        super().__init__()
        check_split(split, val_fraction)
        if imbalance is not None and not imbalance >= 1:
            raise ValueError(
                f"`imbalance` must be at least 1, the largest class by the smallest, got {imbalance}."
            )
        if border not in ("reflect", "zero"):
            raise ValueError(f"`border` must be 'reflect' or 'zero', got {border!r}.")
        if shift is not None and shift < 0:
            raise ValueError(f"`shift` must be at least 0 pixels, got {shift}.")
        self.root = root_folder(root)
        self.batch_size, self.augment = batch_size, augment
        self.shift = self.usual_shift if shift is None else shift
        self.border: Border = border
        self.split, self.val_fraction = split, val_fraction
        self.imbalance, self.split_seed, self.download = imbalance, split_seed, download
        self.cache = None if cache is None else Path(cache).expanduser()
        self._planned: _Plan | None = None
        self._mean, self._std = torch.tensor(self.mean), torch.tensor(self.std)

    def read(self, part: str) -> Part:
        """Returns the ``"train"`` or the ``"test"`` part."""
        raise NotImplementedError(f"{type(self).__name__} must have a method read(part).")

    def fetch(self) -> None:
        """Lets torchvision download what is missing."""
        raise ValueError(
            f"`download` must be false for {type(self).__name__}, which torchvision cannot fetch."
        )

    # --------------------------------------------------------------------------- facts, not decoded

    @property
    def class_names(self) -> tuple[str, ...]:
        """How the classes are called, in order."""
        return self.names

    @property
    def targets(self) -> Tensor:
        """Labels of the training set, int64 [N]; known without decoding an image."""
        plan = self._plan()
        return plan.parts["train"].labels[plan.train]

    def _plan(self) -> _Plan:
        if self._planned is not None:
            return self._planned
        parts = {name: self.read(name) for name in ("train", "test")}
        for name, part in parts.items():
            self._check(name, part.labels)
        labels, tested = parts["train"].labels, parts["test"].labels
        if self.split == "paper":
            val, test = stratified(tested, 0.5, self.split_seed)
            train, val_part = torch.arange(len(labels)), "test"
        else:
            val, train = stratified(labels, self.val_fraction, self.split_seed)
            test, val_part = torch.arange(len(tested)), "train"
        if self.imbalance is not None:
            train = train[long_tailed(labels[train], self.imbalance, self.split_seed)]
        self._planned = _Plan(parts, train, (val_part, val), test)
        return self._planned

    def _check(self, name: str, labels: Tensor) -> None:
        found = torch.bincount(labels) if len(labels) else labels
        if len(found) != self.num_classes or not bool((found > 0).all()):
            raise ValueError(
                f"the {name} part of {type(self).__name__} in '{self.root}' must have "
                f"{self.num_classes} classes with at least one image each, found "
                f"{int((found > 0).sum())} in {len(labels)} images."
            )

    # --------------------------------------------------------------------------- what Lightning calls

    def prepare_data(self) -> None:
        """Downloads and decodes once for all processes, where asked to."""
        if self.download:
            self.fetch()
        if self.cache is not None:
            self._decoded()

    def setup(self, stage: str | None = None) -> None:
        """Puts the images in memory, the first time."""
        if self.train_set is not None:
            return
        plan, images = self._plan(), self._decoded()
        labels = {name: part.labels for name, part in plan.parts.items()}
        where, val = plan.val
        self.val_set = Images(images[where], labels[where], val)
        self.test_set = Images(images["test"], labels["test"], plan.test)
        self.train_set = Images(images["train"], labels["train"], plan.train)

    def _decoded(self) -> dict[str, Tensor]:
        parts = self._plan().parts
        return {name: cached(p, self.cache, f"{self.folder}-{name}") for name, p in parts.items()}

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Augments training batches and normalises all; what is float already is left alone."""
        images, *rest = batch
        if images.dtype == torch.uint8:
            if self.augment and self.trainer is not None and self.trainer.training:
                images = shift_and_flip(images, self.shift, self.flip, self.border)
            images = self._normalised(images)
        return (images, *rest)

    def _normalised(self, images: Tensor) -> Tensor:
        # Moved to the device with the first batch and kept there.
        self._mean, self._std = self._mean.to(images.device), self._std.to(images.device)
        return normalise(images, self._mean, self._std)

    def plain_dataloader(self) -> DataLoader[Any]:
        """Returns the training set in its order, not augmented, normalised without a Trainer's help.

        For scores: ``DataPruning(score_on=ScorePass("plain_dataloader"))``, or `score_pass` alone.
        """
        return self._loader(self.train_set, collate_fn=self._finished)

    def _finished(self, samples: Any) -> Any:
        images, *rest = _collate(samples)
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        return (normalise(images, mean, std), *rest)

    def _options(self, dataset: Images) -> dict[str, Any]:
        # No workers: fetching a batch is one indexing operation.
        size = self.batch_size if dataset is self.train_set else _EVALUATION_BATCH
        return {"batch_size": size, "collate_fn": _collate}
