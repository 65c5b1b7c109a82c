"""The data sets that fit into memory, each with where it lies on a disk."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from lightning_fairprune.experiments.data import _read
from lightning_fairprune.experiments.data._memory import ImagesInMemory
from lightning_fairprune.experiments.data._module import Split
from lightning_fairprune.experiments.data._read import Part
from lightning_fairprune.experiments.data._split import stratified

_CIFAR10_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
_CIFAR10_NAMES = "airplane automobile bird cat deer dog frog horse ship truck"
_CIFAR100_NAMES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile
cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp
lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree
orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum
rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train
trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""  # which its npz form does not carry


class _Fetched(ImagesInMemory):
    """Images that torchvision can download."""

    torchvision_name: ClassVar[str]

    def fetch(self) -> None:
        """Lets torchvision download what is missing."""
        try:
            from torchvision import datasets  # type: ignore[import-untyped]
        except ImportError as error:
            raise ImportError(
                "data is downloaded by torchvision: pip install 'lightning-fairprune[vision]'."
            ) from error
        kind = getattr(datasets, self.torchvision_name)
        for train in (True, False):
            kind(str(self.root), train=train, download=True)

    def _missing(self, forms: str) -> FileNotFoundError:
        return FileNotFoundError(
            f"{type(self).__name__}: '{self.root}' must hold {forms}, found none of them: put the "
            "data there, name another folder by `root` or the environment variable FAIRPRUNE_DATA, "
            "or let torchvision fetch it with download=True."
        )


class _CIFAR(_Fetched):
    """Both CIFARs: the npz form, torchvision's download, or a folder of images."""

    pickles: ClassVar[tuple[str, tuple[str, ...], tuple[str, ...], str]]

    def read(self, part: str) -> Part:
        """Returns the ``"train"`` or the ``"test"`` part."""
        below, train, test, key = self.pickles
        for base in (self.root / self.folder, self.root):
            if (base / f"{part}.npz").is_file():
                return _read.stored_jpegs(base / f"{part}.npz")
            files = [base / below / name for name in (train if part == "train" else test)]
            if files[0].is_file():
                return _read.stored_pickles(files, key)
            if (base / part).is_dir():
                _, paths, labels = _read.class_folders(base / part)
                return _read.image_files(paths, labels)
        raise self._missing(
            f"{self.folder}/{part}.npz, {below} or {self.folder}/{part}/CLASS/*.png"
        )


class CIFAR10(_CIFAR):
    """CIFAR-10 (Krizhevsky 2009): 50,000 and 10,000 images of 32x32 pixels, 10 classes.

    Under `root` it is read from ``cifar10/train.npz`` and ``test.npz`` (image files end to end:
    `jpeg` uint8, `offsets` [N+1], `labels` [N]), ``cifar-10-batches-py`` as torchvision leaves it,
    or ``cifar10/train/CLASS/*.png`` and ``cifar10/test/CLASS/*.png``.

    For arguments and attributes see `ImagesInMemory`.

    Example:
        >>> CIFAR10(imbalance=100).class_names[:3]
        ('airplane', 'automobile', 'bird')
    """

    folder, torchvision_name = "cifar10", "CIFAR10"
    names = tuple(_CIFAR10_NAMES.split())
    mean, std = (125.3, 123.0, 113.9), (63.0, 62.1, 66.7)
    pickles = ("cifar-10-batches-py", _CIFAR10_BATCHES, ("test_batch",), "labels")


class CIFAR100(_CIFAR):
    """CIFAR-100 (Krizhevsky 2009): 50,000 and 10,000 images of 32x32 pixels, 100 classes.

    Under `root` it is read from the same forms as `CIFAR10`, with ``cifar100`` and
    ``cifar-100-python``. For arguments and attributes see `ImagesInMemory`.

    Example:
        >>> CIFAR100(split="clean").num_classes
        100
    """

    folder, torchvision_name = "cifar100", "CIFAR100"
    names = tuple(_CIFAR100_NAMES.split())
    mean, std = (129.3, 124.1, 112.4), (68.2, 65.4, 70.4)
    pickles = ("cifar-100-python", ("train",), ("test",), "fine_labels")


class MNIST(_Fetched):
    """MNIST (LeCun et al. 1998): 60,000 and 10,000 grey images of 28x28 pixels, 10 digits.

    Under `root` it is read from ``MNIST/raw/train-images-idx3-ubyte`` and its three sisters, plain or
    gzipped, as torchvision leaves them. Digits are not mirrored, and by default not shifted. For
    arguments and attributes see `ImagesInMemory`.

    Example:
        >>> MNIST(batch_size=64).shift
        0
    """

    folder = torchvision_name = "MNIST"
    names = tuple("0123456789")
    mean, std = (33.3,), (78.6,)
    usual_shift, flip = 0, False

    def read(self, part: str) -> Part:
        """Returns the ``"train"`` or the ``"test"`` part."""
        raw = self.root / self.folder / "raw"
        prefix = "train" if part == "train" else "t10k"
        files = [raw / f"{prefix}-{form}-ubyte" for form in ("images-idx3", "labels-idx1")]
        if not all(file.exists() or Path(f"{file}.gz").exists() for file in files):
            raise self._missing(f"{self.folder}/raw/{files[0].name} and {files[1].name} (or .gz)")
        return _read.stored_ubyte(*files)


class FashionMNIST(MNIST):
    """Fashion-MNIST (Xiao et al. 2017): 60,000 and 10,000 grey images of 28x28 pixels, 10 garments.

    Under `root` it is read from ``FashionMNIST/raw`` like `MNIST`. For arguments and attributes see
    `ImagesInMemory`.

    Example:
        >>> FashionMNIST().class_names[6]
        'shirt'
    """

    folder = torchvision_name = "FashionMNIST"
    names = (
        *("t-shirt", "trouser", "pullover", "dress", "coat"),
        *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
    )
    mean, std = (72.9,), (90.0,)


class Digits(ImagesInMemory):
    """The handwritten digits that come with scikit-learn: 1,797 grey images of 8x8 pixels.

    Nothing is downloaded. The set has no test part of its own, so 40 % of each class are cut off as
    one: 1,083 images for training, and with ``split="paper"`` 355 for validation and 359 for testing.

    For arguments see `ImagesInMemory`; training images are shifted by at most 1 pixel, never mirrored.

    Example:
        >>> Digits(imbalance=10).targets.bincount()
        tensor([107,  85,  65,  51,  39,  30,  23,  18,  14,  11])
    """

    folder = "digits"
    names = tuple("0123456789")
    mean, std = (73.3,), (90.2,)
    usual_shift, flip = 1, False

    def __init__(
        self,
        batch_size: int = 32,
        augment: bool = False,
        split: Split = "paper",
        val_fraction: float = 0.2,
        imbalance: float | None = None,
        split_seed: int = 0,
    ) -> None:
        cuts: Any = {"split": split, "val_fraction": val_fraction, "split_seed": split_seed}
        super().__init__(batch_size=batch_size, augment=augment, imbalance=imbalance, **cuts)

    def read(self, part: str) -> Part:
        """Returns the ``"train"`` or the ``"test"`` part."""
        from sklearn.datasets import load_digits

        pixels, digits = load_digits(return_X_y=True)
        images = (pixels.reshape(-1, 8, 8, 1) * 15).astype(np.uint8)  # they are 0..16
        labels = torch.from_numpy(digits).long()
        test, train = stratified(labels, 0.4, self.split_seed)
        rows = train if part == "train" else test
        decode = functools.partial(np.take, images, rows.numpy(), axis=0)
        return Part(labels[rows], decode, f"scikit-learn {self.split_seed}")


class TinyImageNet(ImagesInMemory):
    """Tiny ImageNet (Stanford CS231n): 100,000 and 10,000 images of 64x64 pixels, 200 classes.

    Under `root` it is read as it is distributed, from ``tiny-imagenet-200`` with
    ``train/CLASS/images/*.JPEG``, ``val/images`` and ``val/val_annotations.txt``. The labels of its
    test part are not public, so its validation part is the test set here. For arguments and
    attributes see `ImagesInMemory`; name a `cache`, so that 110,000 files are decoded only once.

    Example:
        >>> TinyImageNet(batch_size=256).shift
        4
    """

    folder = "tiny-imagenet-200"
    mean, std = (122.5, 114.3, 101.4), (70.6, 68.6, 71.9)

    @property
    def class_names(self) -> tuple[str, ...]:
        """First word of each class, or its folder where words.txt does not know it."""
        lines = self._text("words.txt").splitlines()
        words = dict(line.split("\t", 1) for line in lines if "\t" in line)
        return tuple(words.get(name, name).split(",")[0] for name in self._folders())

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self._folders())

    def read(self, part: str) -> Part:
        """Returns the ``"train"`` or the ``"test"`` part."""
        base, folders = self.root / self.folder, self._folders()
        if part == "train":
            _, paths, labels = _read.class_folders(base / "train", "images")
            return _read.image_files(paths, labels)
        number = {name: k for k, name in enumerate(folders)}
        rows = [line.split("\t") for line in self._text("val/val_annotations.txt").splitlines()]
        paths = [base / "val" / "images" / row[0] for row in rows]
        return _read.image_files(paths, torch.tensor([number[row[1]] for row in rows]))

    def _folders(self) -> list[str]:
        train = self.root / self.folder / "train"
        if not train.is_dir():
            raise FileNotFoundError(
                f"TinyImageNet: '{self.root}' must hold {self.folder}/train, val and words.txt as "
                "distributed, found no such folder: unpack cs231n.stanford.edu/tiny-imagenet-200.zip "
                "there, or name another folder by `root` or the environment variable FAIRPRUNE_DATA."
            )
        return sorted(entry.name for entry in train.iterdir() if entry.is_dir())

    def _text(self, name: str) -> str:
        return (self.root / self.folder / name).read_text(encoding="utf-8")
