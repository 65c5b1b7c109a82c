"""Images that are decoded and cropped by workers as they are needed."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_fairprune.experiments.data._module import ImageModule, Split, check_split
from lightning_fairprune.experiments.data._read import class_folders, rgb_image, root_folder
from lightning_fairprune.experiments.data._split import stratified

_MEAN, _STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of ImageNet, in 0..255


class ImageFiles(Dataset[Any]):
    """Image files, decoded as they are fetched.

    Args:
        paths: N files.
        targets: labels, int64 [N].
        transform: from a Pillow image to a tensor.
        groups: int64 [N]; None for samples ``(image, label)``.

    Example:
        >>> data = ImageFiles([Path("a.jpg"), Path("b.jpg")], torch.tensor([1, 0]), transform=str)
        >>> len(data), data.targets
        (2, tensor([1, 0]))
    """

    def __init__(
        self,
        paths: Sequence[Path],
        targets: Tensor,
        transform: Callable[[Any], Any],
        groups: Tensor | None = None,
    ) -> None:
        self.paths, self.targets, self.groups = paths, targets, groups
        self.transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        image = self.transform(rgb_image(self.paths[index]))
        label = int(self.targets[index])
        return (image, label) if self.groups is None else (image, label, int(self.groups[index]))

    def with_transform(self, transform: Callable[[Any], Any]) -> ImageFiles:
        """Returns the same samples, transformed in another way."""
        return ImageFiles(self.paths, self.targets, transform, self.groups)

    def rows(self, rows: Tensor) -> ImageFiles:
        """Returns some of the samples."""
        groups = None if self.groups is None else self.groups[rows]
        paths = [self.paths[i] for i in rows.tolist()]
        return ImageFiles(paths, self.targets[rows], self.transform, groups)


class _ImagesOnDisk(ImageModule):
    """Loaders over image files; batches are uint8 [B, 3, S, S] until they are on the device.

    A subclass gives `find` and `class_names`.
    """

    crop_scale: ClassVar[tuple[float, float]]  # share of the area that a random crop has

    def __init__(
        self, root: str | None, batch_size: int, augment: bool, image_size: int, num_workers: int
    ) -> None:
        super().__init__()
        self.root = root_folder(root)
        self.batch_size, self.augment = batch_size, augment
        self.image_size, self.num_workers = image_size, num_workers
        self._mean, self._std = (torch.tensor(v)[:, None, None] for v in (_MEAN, _STD))

    def find(self) -> tuple[ImageFiles, ImageFiles, ImageFiles]:
        """Returns training, validation and test set, not augmented."""
        raise NotImplementedError(f"{type(self).__name__} must have a method find().")

    @property
    def targets(self) -> Tensor:
        """Labels of the training set, int64 [N]."""
        self.setup()
        return torch.as_tensor(self.train_set.targets)

    def setup(self, stage: str | None = None) -> None:
        """Lists the files, the first time."""
        if self.train_set is not None:
            return
        train, self.val_set, self.test_set = self.find()
        self.train_set = train.with_transform(self._transform(self.augment))
        self.groups = train.groups

    def _transform(self, augment: bool, finish: bool = False) -> Callable[[Any], Any]:
        """Returns the usual crops of ImageNet; those of evaluation take 7/8 of the shorter side."""
        v2 = _transforms()
        size = self.image_size
        if augment:
            steps = [v2.RandomResizedCrop(size, scale=self.crop_scale), v2.RandomHorizontalFlip()]
        else:
            steps = [v2.Resize(size * 8 // 7), v2.CenterCrop(size)]
        steps.append(v2.PILToTensor())  # uint8: a quarter of the way to the device
        if finish:
            steps += [v2.ToDtype(torch.float32), v2.Normalize(_MEAN, _STD)]
        return v2.Compose(steps)  # type: ignore[no-any-return]

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Normalises; what is float already is left alone."""
        images, *rest = batch
        if images.dtype == torch.uint8:
            self._mean, self._std = self._mean.to(images.device), self._std.to(images.device)
            images = (images.float() - self._mean) / self._std
        return (images, *rest)

    def plain_dataloader(self) -> DataLoader[Any]:
        """Returns the training set in its order, not augmented, normalised without a Trainer's help."""
        plain = self._transform(augment=False, finish=True)
        return self._loader(self.train_set and self.train_set.with_transform(plain))

    def _options(self, dataset: ImageFiles) -> dict[str, Any]:
        return {
            "batch_size": self.batch_size,
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "pin_memory": torch.cuda.is_available(),
        }


def _transforms() -> Any:
    try:
        from torchvision.transforms import v2  # type: ignore[import-untyped]
    except ImportError as error:
        raise ImportError(
            "image files are cropped by torchvision: pip install 'lightning-fairprune[vision]'."
        ) from error
    return v2


class ImageNet(_ImagesOnDisk):
    """ImageNet (Russakovsky et al. 2015), or any folder of its form, read during training.

    Under `root` it is read from ``imagenet/train/CLASS/*.JPEG`` and ``imagenet/val/CLASS/*.JPEG``.
    The labels of its test part are not public, so its validation part is the test set here.

    Args:
        root: folder of all data; by default $FAIRPRUNE_DATA, else ``data``.
        batch_size: of all loaders.
        augment: whether training images are cropped at random and mirrored.
        split: ``"paper"`` validates on half of the validation part and tests on the other half;
            ``"clean"`` cuts validation from the training set. Both are stratified.
        val_fraction: of each class of the training set, with ``split="clean"``.
        split_seed: of the split; keep it while the seed of training varies.
        image_size: side of the crops in pixels.
        num_workers: processes that decode.

    Attributes:
        class_names: folders of the classes, sorted; after `setup`.
        train_set, val_set, test_set: after `setup`; each has `targets`, int64 [N].
        groups: None.

    Raises:
        FileNotFoundError: At `setup`, if the data is not there.
        ValueError: If an argument is out of range, or validation has other classes than training.

    Example:
        >>> ImageNet(batch_size=512, num_workers=16).image_size
        224
    """

    crop_scale = (0.08, 1.0)

    def __init__(
        self,
        root: str | None = None,
        batch_size: int = 256,
        augment: bool = True,
        split: Split = "paper",
        val_fraction: float = 0.02,
        split_seed: int = 0,
        image_size: int = 224,
        num_workers: int = 8,
    ) -> None:
        super().__init__(root, batch_size, augment, image_size, num_workers)
        check_split(split, val_fraction)
        self.split, self.val_fraction, self.split_seed = split, val_fraction, split_seed

    def find(self) -> tuple[ImageFiles, ImageFiles, ImageFiles]:
        """Returns training, validation and test set, not augmented."""
        base = self.root / "imagenet"
        if not ((base / "train").is_dir() and (base / "val").is_dir()):
            raise FileNotFoundError(
                f"ImageNet: '{self.root}' must hold imagenet/train/CLASS/*.JPEG and imagenet/val/CLASS/"
                "*.JPEG, found no such folders: put the data there, or name another folder by `root` "
                "or the environment variable FAIRPRUNE_DATA."
            )
        names, files, labels = class_folders(base / "train")
        others, tested, tested_labels = class_folders(base / "val")
        if names != others:
            raise ValueError(
                f"imagenet/val must have the class folders of imagenet/train, found {len(others)} and "
                f"{len(names)}, which differ in {sorted({*names} ^ {*others})[0]!r}."
            )
        self.class_names = tuple(names)
        plain = self._transform(augment=False)
        train, test = ImageFiles(files, labels, plain), ImageFiles(tested, tested_labels, plain)
        whole = test if self.split == "paper" else train
        fraction = 0.5 if self.split == "paper" else self.val_fraction
        val, rest = map(whole.rows, stratified(whole.targets, fraction, self.split_seed))
        return (train, val, rest) if self.split == "paper" else (rest, val, test)


class Waterbirds(_ImagesOnDisk):
    """Waterbirds (Sagawa et al. 2020): birds of land and water before both backgrounds.

    Batches are ``(image, label, group)`` with ``group = 2 label + background``; training has 3,498
    and 184 landbirds on land and on water, 56 and 1,057 waterbirds. Training, validation and test
    set are the published ones. For quotas over groups: ``DataPruning(group_by=2)``.

    Under `root` it is read from ``waterbirds/metadata.csv`` (or
    ``waterbird_complete95_forest2water2/metadata.csv``), with columns img_filename, y, split (0, 1, 2)
    and place, and the images it names.

    Arguments, attributes and errors are those of `ImageNet`; its sets have `groups` too, int64 [N].

    Example:
        >>> Waterbirds().group_names
        ('landbird on land', 'landbird on water', 'waterbird on land', 'waterbird on water')
    """

    crop_scale = (0.7, 1.0)
    class_names = ("landbird", "waterbird")
    group_names = tuple(f"{bird} on {place}" for bird in class_names for place in ("land", "water"))

    def __init__(
        self,
        root: str | None = None,
        batch_size: int = 128,
        augment: bool = True,
        image_size: int = 224,
        num_workers: int = 4,
    ) -> None:
        super().__init__(root, batch_size, augment, image_size, num_workers)

    def find(self) -> tuple[ImageFiles, ImageFiles, ImageFiles]:
        """Returns training, validation and test set, not augmented."""
        folders = [
            self.root / name for name in ("waterbirds", "waterbird_complete95_forest2water2")
        ]
        bases = [folder for folder in folders if (folder / "metadata.csv").is_file()]
        if not bases:
            raise FileNotFoundError(
                f"Waterbirds: '{self.root}' must hold waterbirds/metadata.csv and the images it names, "
                "found no such file: unpack waterbird_complete95_forest2water2.tar.gz there (see "
                "github.com/kohpangwei/group_DRO), or name another folder by `root` or the "
                "environment variable FAIRPRUNE_DATA."
            )
        with (bases[0] / "metadata.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        label, place, part = (
            torch.tensor([int(row[name]) for row in rows]) for name in ("y", "place", "split")
        )
        paths = [bases[0] / row["img_filename"] for row in rows]
        whole = ImageFiles(paths, label, self._transform(augment=False), 2 * label + place)
        train, val, test = (whole.rows((part == i).nonzero().flatten()) for i in range(3))
        return train, val, test
