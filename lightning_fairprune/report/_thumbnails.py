"""Small pictures of the hardest and easiest samples of each class that pruning kept and dropped."""

from __future__ import annotations

import contextlib
import io
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from lightning_fairprune.records.pruning_record import PruningRecord

MOST_CLASSES = 20
NAMES = ("image", "img", "pixel_values", "x")
CHANNELS = (1, 3, 4)


@dataclass(frozen=True, slots=True)
class Example:
    """One sample: its index, its score or None, and a PNG file."""

    index: int
    score: float | None
    png: bytes


@dataclass(frozen=True, slots=True)
class ClassExamples:
    """Different samples of one class, or group: hardest and easiest ones, extremes first, or random ones without scores."""

    label: int
    hardest_kept: tuple[Example, ...] = ()
    easiest_kept: tuple[Example, ...] = ()
    hardest_dropped: tuple[Example, ...] = ()
    easiest_dropped: tuple[Example, ...] = ()
    random_kept: tuple[Example, ...] = ()
    random_dropped: tuple[Example, ...] = ()


@dataclass(frozen=True, slots=True)
class Examples:
    """The examples of each class, or the reason why there are none.

    `stretched` says whether pixels outside [0, 1], of normalised images, say, were rescaled, so that colours are
    not true.
    """

    classes: tuple[ClassExamples, ...] = ()
    reason: str = ""
    stretched: bool = False


def examples(
    record: PruningRecord,
    dataset: Any,
    *,
    per_class: int = 6,
    classes: Sequence[int] | None = None,
    size: int = 48,
) -> Examples:
    """Returns pictures of samples of each class that pruning kept and dropped.

    A sample is an image, or has one as its first element or under "image", "img", "pixel_values" or "x": a PIL image,
    or an array or tensor [C,H,W], [H,W,C] or [H,W] of 1, 3 or 4 channels. The caller's random state is restored.

    Args:
        record: of the run.
        dataset: the pruned data, map-style, in the same order.
        per_class: pictures of each kind (hardest kept, ...) of each class.
        classes: which classes; None for the 20 of lowest density, the lowest first.
        size: longer side of a picture in pixels.

    Raises:
        ValueError: If the length of the dataset differs, or an argument is out of range.
        ImportError: If Pillow is missing.

    Example:
        >>> from lightning_fairprune import select
        >>> target = torch.tensor([0, 0, 0, 1])
        >>> chosen = select(target, torch.tensor([1, 1]))
        >>> record = PruningRecord(chosen, target, torch.tensor([0.5, 0.9, 0.1, 0.2]))
        >>> images = torch.arange(4 * 8 * 8).view(4, 8, 8) / 256
        >>> first = examples(record, images).classes[0]
        >>> first.label, [example.index for example in first.hardest_dropped]
        (0, [1])
    """
    if per_class < 1 or size < 1:
        raise ValueError(f"`per_class` and `size` must be at least 1, got {per_class} and {size}.")
    labels = _labels(record, classes)
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__"):
        return Examples(reason="Samples cannot be looked up: the dataset is not map-style.")
    if len(dataset) != record.selection.num_samples:
        raise ValueError(
            f"`dataset` must be the one that was pruned, of {record.selection.num_samples} samples, got "
            f"{len(dataset)}."
        )
    kept = record.selection.mask()
    generator = torch.Generator().manual_seed(record.selection.seed)
    found, stretched = [], False
    with _random_state_kept():
        for label in labels:
            shown: dict[str, tuple[Example, ...]] = {}
            for kind, chosen in _chosen(record, kept, label, per_class, generator).items():
                for index in chosen:
                    picture = _picture(dataset, index, size)
                    if isinstance(picture, str):
                        return Examples(reason=picture)
                    score = None if record.score is None else float(record.score[index])
                    shown[kind] = (*shown.get(kind, ()), Example(index, score, picture[0]))
                    stretched |= picture[1]
            found.append(ClassExamples(label, **shown))
    return Examples(tuple(found), stretched=stretched)


def pictures(dataset: Any, indices: Sequence[int], size: int = 48) -> list[Example]:
    """Returns pictures of samples; none if one of them is no image or cannot be read."""
    found = []
    with _random_state_kept():
        for index in indices:
            picture = _picture(dataset, index, size)
            if isinstance(picture, str):
                return []
            found.append(Example(index, None, picture[0]))
    return found


def _labels(record: PruningRecord, classes: Sequence[int] | None) -> list[int]:
    sizes = record.selection.sizes
    if classes is None:
        order = record.selection.class_density.argsort(stable=True)  # sorting puts NaN last
        return order[: min(int((sizes > 0).sum()), MOST_CLASSES)].tolist()
    wrong = [label for label in classes if not 0 <= label < len(sizes)]
    if wrong:
        raise ValueError(f"`classes` must be in [0, {len(sizes)}), got {wrong[0]}.")
    return [int(label) for label in classes]


def _chosen(
    record: PruningRecord, kept: Tensor, label: int, most: int, generator: torch.Generator
) -> dict[str, list[int]]:
    """Returns the samples to show by field of `ClassExamples`."""
    found = {}
    for part, mask in (("kept", kept), ("dropped", ~kept)):
        members = ((record.target == label) & mask).nonzero().squeeze(1)
        if record.score is None:
            order = torch.randperm(len(members), generator=generator)[:most]
            found[f"random_{part}"] = members[order].tolist()
            continue
        members = members[~record.score[members].isnan()]
        ranked = members[record.score[members].argsort(descending=True, stable=True)].tolist()
        half = (len(ranked) + 1) // 2
        found[f"hardest_{part}"] = ranked[:half][:most]
        found[f"easiest_{part}"] = ranked[half:][::-1][:most]
    return found


@contextlib.contextmanager
def _random_state_kept() -> Iterator[None]:
    """Seeds the random generators that a dataset may use, for reproducible pictures, and restores them."""
    import numpy as np

    state, state_of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 (the one in use)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            np.random.seed(0)  # noqa: NPY002
            random.seed(0)
            yield
    finally:
        random.setstate(state)
        np.random.set_state(state_of_numpy)  # noqa: NPY002


def _picture(dataset: Any, index: int, size: int) -> tuple[bytes, bool] | str:
    """Returns a PNG file and whether it was stretched, or the reason why there is none."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            "thumbnails need Pillow: pip install 'lightning-fairprune[report]'."
        ) from error

    try:
        sample = dataset[index]
    except OSError as error:  # the files may be gone
        return f"Sample {index} cannot be read: {error}."
    image, stretched = _content(sample), False
    if not isinstance(image, Image.Image) or image.mode.startswith(("I", "F")):
        pixels = None if image is None else _pixels(image)
        if pixels is None:
            return f"The samples are not images: sample {index} is {_in_words(sample)}."
        image, stretched = Image.fromarray(pixels[0]), pixels[1]
    elif image.mode not in ("L", "RGB", "RGBA"):
        transparent = "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBa")
        image = image.convert("RGBA" if transparent else "RGB")
    scale = size / max(image.size)
    # A small image stays crisp; a large one is averaged.
    how = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    width, height = (max(1, round(scale * side)) for side in image.size)
    file = io.BytesIO()
    image.resize((width, height), how).save(file, format="PNG", optimize=True)
    return file.getvalue(), stretched


def _content(sample: Any, depth: int = 3) -> Any:
    """Returns the possible image in a sample, or None."""
    from PIL import Image

    if isinstance(sample, Image.Image | Tensor) or hasattr(sample, "__array_interface__"):
        return sample
    if depth == 0:
        return None
    if isinstance(sample, Mapping):
        return next((_content(sample[n], depth - 1) for n in NAMES if n in sample), None)
    for name in NAMES:
        if hasattr(sample, name):
            return _content(getattr(sample, name), depth - 1)
    if isinstance(sample, Sequence) and not isinstance(sample, str | bytes) and len(sample):
        return _content(sample[0], depth - 1)
    return None


def _pixels(image: Any) -> tuple[Any, bool] | None:
    """Returns uint8 [H,W] or [H,W,C] and whether it was stretched; None if it is no image."""
    import numpy as np

    channels_first = isinstance(image, Tensor)  # if the shape is ambiguous
    if isinstance(image, Tensor):
        image = image.detach().cpu()
        image = (image.float() if image.is_floating_point() else image).numpy()
    image = np.asarray(image)
    if image.ndim not in (2, 3) or not image.size or image.dtype.kind not in "buif":
        return None
    if image.ndim == 3:
        first, last = image.shape[0] in CHANNELS, image.shape[-1] in CHANNELS
        if not first and not last:
            return None
        if first and (channels_first or not last):
            image = image.transpose(1, 2, 0)
        if image.shape[-1] == 1:
            image = image[..., 0]
    if image.dtype == np.uint8:
        return np.ascontiguousarray(image), False
    whole = 1.0 if image.dtype.kind in "bf" else 255.0
    image = np.nan_to_num(image.astype(np.float64), posinf=0.0, neginf=0.0) / whole
    low, high = image.min(), image.max()
    stretched = bool(low < -1e-6 or high > 1 + 1e-6)
    if stretched:
        image = (image - low) / max(high - low, 1e-12)
    return (255 * image.clip(0, 1)).round().astype(np.uint8), stretched


def _in_words(sample: Any) -> str:
    if isinstance(sample, tuple | list) and len(sample):
        return f"a {type(sample).__name__} with {_in_words(sample[0])} first"
    if isinstance(sample, Mapping):
        return f"a {type(sample).__name__} with {', '.join(map(str, sample)) or 'nothing'}"
    shape = getattr(sample, "shape", None)
    return f"a {type(sample).__name__}" + ("" if shape is None else f" {list(shape)}")
