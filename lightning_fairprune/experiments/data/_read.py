"""The forms in which image data lies on a disk, each read into one array."""

from __future__ import annotations

import functools
import gzip
import hashlib
import io
import itertools
import os
import pickle
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from lightning_fairprune._files import write_whole

_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One part of a data set, whose labels are known and whose images need not be decoded yet.

    Args:
        labels: int64 [N].
        decode: returns the images, uint8 [N, H, W, C].
        source: what tells the data from others with the same labels.
    """

    labels: Tensor
    decode: Callable[[], np.ndarray]
    source: str


def root_folder(root: str | None) -> Path:
    """Returns the folder of all data: `root`, else $FAIRPRUNE_DATA, else ``data``."""
    return Path(root or os.environ.get("FAIRPRUNE_DATA") or "data").expanduser()


def cached(part: Part, folder: Path | None, name: str) -> Tensor:
    """Returns the images, uint8 [N, H, W, C], decoded once if there is a folder to keep them in.

    What is kept is mapped into memory, not read, so that several processes share it.
    """
    if folder is None:
        return torch.from_numpy(part.decode())
    digest = hashlib.sha256(part.source.encode() + part.labels.numpy().tobytes()).hexdigest()[:12]
    path = folder / f"{name}-{digest}.npy"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda temporary: _save(temporary, part.decode()))
    return torch.from_numpy(np.load(path, mmap_mode="c"))


def _save(path: Path, images: np.ndarray) -> None:
    with path.open("wb") as file:  # numpy.save gives a path of its own another suffix
        np.save(file, images)


# -------------------------------------------------------------------------------- one file for all


def stored_jpegs(path: Path) -> Part:
    """Reads an archive with `jpeg` uint8, all files end to end, `offsets` [N+1] and `labels` [N]."""
    with np.load(path) as archive:
        labels = archive["labels"].astype(np.int64)
    decode = functools.partial(_decode_jpegs, path)
    return Part(torch.from_numpy(labels), decode, f"{path.name} {path.stat().st_size}")


def _decode_jpegs(path: Path) -> np.ndarray:
    with np.load(path) as archive:
        data, offsets = archive["jpeg"].tobytes(), archive["offsets"].tolist()
    files = (io.BytesIO(data[i:j]) for i, j in itertools.pairwise(offsets))
    return _stack(map(rgb_array, files), len(offsets) - 1, str(path))


def stored_pickles(paths: Sequence[Path], key: str) -> Part:
    """Reads the pickles of CIFAR: `data` uint8 [n, 3*32*32] and labels under `key`."""
    labels = torch.tensor([label for path in paths for label in _unpickled(path)[key]])
    return Part(labels, functools.partial(_decode_pickles, paths), " ".join(p.name for p in paths))


def _decode_pickles(paths: Sequence[Path]) -> np.ndarray:
    pixels = np.concatenate([_unpickled(path)["data"] for path in paths])
    return np.ascontiguousarray(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def _unpickled(path: Path) -> Any:
    with path.open("rb") as file:
        return _ArraysOnly(file, encoding="latin1").load()


class _ArraysOnly(pickle.Unpickler):
    """Builds arrays, lists and text, and calls nothing else that a file may name."""

    def find_class(self, module: str, name: str) -> Any:
        if name == "dtype":
            # The files are from Python 2; some releases of numpy warn of the align=0 in them.
            return lambda kind, *_: np.dtype(kind)
        if name == "ndarray":
            return np.ndarray
        if name == "_reconstruct" and module.startswith("numpy."):
            return super().find_class(module, name)
        if (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(
            f"a file of CIFAR must hold arrays only, found {module}.{name}."
        )


def stored_ubyte(images: Path, labels: Path) -> Part:
    """Reads the two files of MNIST and its kin, plain or gzipped."""
    return Part(
        torch.from_numpy(_ubyte(labels).astype(np.int64)),
        functools.partial(_decode_ubyte, images),
        f"{images.parent.parent.name} {images.name}",
    )


def _decode_ubyte(path: Path) -> np.ndarray:
    return _ubyte(path)[..., None]


def _ubyte(path: Path) -> np.ndarray:
    packed = path.with_name(f"{path.name}.gz")
    data = path.read_bytes() if path.exists() else gzip.decompress(packed.read_bytes())
    # Two zero bytes, 8 for uint8, the number of dimensions, then each of them.
    shape = np.frombuffer(data, ">i4", count=data[3], offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape).copy()


# ------------------------------------------------------------------------------ one file per image


def class_folders(folder: Path, below: str = "") -> tuple[list[str], list[Path], Tensor]:
    """Returns class names in order, image files and their labels int64 [N] of folder/CLASS/`below`."""
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    found = [_images_in(folder / name / below) for name in names]
    labels = torch.arange(len(names)).repeat_interleave(torch.tensor([len(f) for f in found]))
    return names, list(itertools.chain.from_iterable(found)), labels


def _images_in(folder: Path) -> list[Path]:
    names = (entry.name for entry in os.scandir(folder))
    return [folder / name for name in sorted(names) if name.lower().endswith(_SUFFIXES)]


def image_files(paths: Sequence[Path], labels: Tensor) -> Part:
    """Reads image files of one size."""
    source = "\n".join(f"{path.parent.name}/{path.name}" for path in paths)
    return Part(labels, functools.partial(_decode_files, paths), source)


def _decode_files(paths: Sequence[Path]) -> np.ndarray:
    with ThreadPoolExecutor() as pool:  # decoding releases the interpreter lock
        return _stack(pool.map(rgb_array, paths), len(paths), str(paths[0].parents[1]))


def rgb_array(file: Path | IO[bytes]) -> np.ndarray:
    """Returns an image file as uint8 [H, W, 3]."""
    return np.asarray(rgb_image(file))


def rgb_image(file: Path | IO[bytes]) -> Any:
    """Returns an image file as a Pillow image with three channels."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            "image files are read by Pillow: pip install 'lightning-fairprune[vision]'."
        ) from error
    with Image.open(file) as image:
        return image.convert("RGB")


def _stack(images: Iterable[np.ndarray], count: int, where: str) -> np.ndarray:
    """Returns the images as one array, filled as they come."""
    stacked: np.ndarray = np.empty(0, np.uint8)
    for i, image in enumerate(images):
        if i == 0:
            stacked = np.empty((count, *image.shape), np.uint8)
        if image.shape != stacked.shape[1:]:
            raise ValueError(
                f"the images in {where!r} must all have one size to be kept in memory, image {i} is "
                f"{image.shape[1]}x{image.shape[0]}, the first {stacked.shape[2]}x{stacked.shape[1]}."
            )
        stacked[i] = image
    return stacked
