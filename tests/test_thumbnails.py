from __future__ import annotations

import io
import os
import random
import re
import sys
from collections import UserDict, namedtuple
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from lightning_fairprune import select
from lightning_fairprune.records.pruning_record import PruningRecord
from lightning_fairprune.report._thumbnails import ClassExamples, examples

Image = pytest.importorskip("PIL.Image")

KINDS = ("hardest_kept", "easiest_kept", "hardest_dropped", "easiest_dropped")
RANDOM = ("random_kept", "random_dropped")


def record_of(
    target: list[int], quota: list[int], score: list[float] | None = None, seed: int = 0
) -> PruningRecord:
    labels = torch.tensor(target)
    selection = select(labels, torch.tensor(quota), seed=seed)
    return PruningRecord(selection, labels, None if score is None else torch.tensor(score))


def opened(png: bytes) -> Any:
    assert png.startswith(b"\x89PNG")
    return Image.open(io.BytesIO(png))


def indices(found: ClassExamples, kind: str) -> list[int]:
    return [example.index for example in getattr(found, kind)]


class Counted:
    """Images of one value, and what was read."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.read: list[int] = []

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.read.append(index)
        return torch.full((3, 4, 4), index % 256, dtype=torch.uint8), 0


def test_hardest_and_easiest_are_the_ends_of_each_part() -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(3, (200,), generator=generator).tolist()
    score = torch.rand(200, generator=generator).tolist()
    record = record_of(target, [20, 10, 30], score)
    dataset = Counted(200)
    found = examples(record, dataset, per_class=4)
    assert not found.reason
    assert not found.stretched
    sizes = record.selection.sizes
    density = record.selection.quota / sizes
    assert [entry.label for entry in found.classes] == density.argsort().tolist()
    kept = set(record.selection.indices.tolist())
    for entry in found.classes:
        for part, inside in (("kept", True), ("dropped", False)):
            members = [i for i in range(200) if target[i] == entry.label and (i in kept) == inside]
            hardest_first = sorted(members, key=lambda i: -score[i])
            assert indices(entry, f"hardest_{part}") == hardest_first[:4]
            assert indices(entry, f"easiest_{part}") == hardest_first[::-1][:4]
        assert entry.random_kept == entry.random_dropped == ()
        for example in entry.hardest_kept:
            assert example.score == pytest.approx(score[example.index])
            assert opened(example.png).getpixel((0, 0)) == (example.index,) * 3
    assert sorted(dataset.read) == sorted(
        i for entry in found.classes for kind in KINDS for i in indices(entry, kind)
    )


def test_no_sample_appears_twice() -> None:
    score = [0.1, 0.5, 0.3, 0.9, 0.2]
    (entry,) = examples(record_of([0] * 5, [5], score), Counted(5)).classes
    assert indices(entry, "hardest_kept") == [3, 1, 2]
    assert indices(entry, "easiest_kept") == [0, 4]
    assert entry.hardest_dropped == entry.easiest_dropped == ()
    nan = float("nan")
    (entry,) = examples(record_of([0] * 3, [3], [nan, 0.5, nan]), Counted(3)).classes
    assert indices(entry, "hardest_kept") == [1]
    assert entry.easiest_kept == ()


def test_without_scores_samples_are_random_and_the_same_each_time() -> None:
    record = record_of([0] * 50, [20])
    (entry,) = examples(record, Counted(50)).classes
    assert all(getattr(entry, kind) == () for kind in KINDS)
    kept = set(record.selection.indices.tolist())
    assert len(set(indices(entry, "random_kept")) & kept) == 6
    assert len(set(indices(entry, "random_dropped")) - kept) == 6
    assert entry.random_kept[0].score is None
    assert examples(record, Counted(50)).classes == (entry,)
    other = examples(record_of([0] * 50, [20], seed=1), Counted(50)).classes[0]
    assert indices(other, "random_dropped") != indices(entry, "random_dropped")


def test_only_some_classes_are_read() -> None:
    target = [k for k in range(30) for _ in range(4)]
    record = record_of(target, [1 + (k % 4) for k in range(30)])
    dataset = Counted(120)
    found = examples(record, dataset, per_class=1)
    density = record.selection.class_density
    labels = [entry.label for entry in found.classes]
    assert len(labels) == 20
    assert density[labels].tolist() == sorted(density.tolist())[:20]
    assert len(dataset.read) <= 40
    asked = examples(record, Counted(120), classes=[7, 3]).classes
    assert [entry.label for entry in asked] == [7, 3]


def test_a_class_without_samples_is_not_shown() -> None:
    record = record_of([0, 0, 2], [1, 0, 1])
    assert sorted(entry.label for entry in examples(record, Counted(3)).classes) == [0, 2]
    (entry,) = examples(record, Counted(3), classes=[1]).classes
    assert entry == ClassExamples(1)


Pair = namedtuple("Pair", ["number", "image"])
RAMP = torch.arange(256, dtype=torch.uint8).view(16, 16)
COLOUR = torch.stack([RAMP, 255 - RAMP, RAMP // 2])
IMAGES: dict[str, tuple[Any, Any]] = {
    "tensor [C,H,W]": (COLOUR, COLOUR),
    "tensor [H,W,C]": (COLOUR.permute(1, 2, 0), COLOUR),
    "tensor [H,W]": (RAMP, RAMP),
    "tensor [1,H,W]": (RAMP[None], RAMP),
    "four channels": (torch.cat([COLOUR, RAMP[None]]), torch.cat([COLOUR, RAMP[None]])),
    "float": (COLOUR / 255, COLOUR),
    "half": ((COLOUR / 255).half(), COLOUR),
    "bfloat16": ((COLOUR > 99).bfloat16(), 255 * (COLOUR > 99)),
    "int64": (COLOUR.long(), COLOUR),
    "bool": (RAMP > 99, 255 * (RAMP > 99)),
    "requires grad": ((COLOUR / 255).requires_grad_(), COLOUR),
    "array [H,W,C]": (COLOUR.permute(1, 2, 0).numpy(), COLOUR),
    "array [C,H,W]": (COLOUR.numpy(), COLOUR),
    "PIL": (Image.fromarray(COLOUR.permute(1, 2, 0).numpy()), COLOUR),
    "PIL grey": (Image.fromarray(RAMP.numpy()), RAMP),
    "tuple": ((COLOUR, 3), COLOUR),
    "list": ([COLOUR, 3], COLOUR),
    "tuple in tuple": (((COLOUR, 2), 3), COLOUR),
    "tuple of mapping": (({"img": COLOUR}, 3), COLOUR),
    "image": ({"label": 3, "image": COLOUR}, COLOUR),
    "img": ({"img": COLOUR}, COLOUR),
    "pixel_values": (UserDict(pixel_values=COLOUR, labels=3), COLOUR),
    "x": ({"x": COLOUR, "y": 3}, COLOUR),
    "attribute": (SimpleNamespace(x=COLOUR, y=3), COLOUR),
    "named tuple": (Pair(3, COLOUR), COLOUR),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_every_kind_of_image(kind: str) -> None:
    sample, wanted = IMAGES[kind]
    found = examples(record_of([0], [1]), [sample], size=16)
    assert not found.reason
    assert not found.stretched
    picture = torch.from_numpy(np.array(opened(found.classes[0].random_kept[0].png)))
    picture = picture.permute(2, 0, 1) if picture.ndim == 3 else picture
    assert torch.equal(picture, wanted.to(torch.uint8))


def test_modes_of_pil_that_need_a_conversion() -> None:
    base = Image.fromarray(COLOUR.permute(1, 2, 0).numpy())
    for mode, wanted in (("P", "RGB"), ("CMYK", "RGB"), ("1", "RGB"), ("LA", "RGBA"), ("F", "L")):
        found = examples(record_of([0], [1]), [(base.convert(mode), 0)])
        assert opened(found.classes[0].random_kept[0].png).mode == wanted
        assert found.stretched == (mode == "F")


def test_what_is_not_in_0_to_1_is_stretched() -> None:
    normalised = (COLOUR / 255 - 0.5) / 0.25
    found = examples(record_of([0], [1]), [normalised], size=16)
    assert found.stretched
    picture = torch.from_numpy(np.array(opened(found.classes[0].random_kept[0].png)))
    assert torch.equal(picture.permute(2, 0, 1), COLOUR)  # its own lowest is 0, its highest 255
    broken = torch.tensor([[float("nan"), float("inf")], [3.0, -1.0]])
    assert examples(record_of([0], [1]), [broken]).stretched
    assert examples(record_of([0], [1]), [torch.full((4, 4), 7.0)]).stretched
    assert examples(record_of([0], [1]), [torch.full((4, 4), 70000)]).stretched


def test_small_images_stay_crisp_and_large_ones_are_averaged() -> None:
    checks = ((torch.arange(8)[:, None] + torch.arange(8)) % 2 * 255).to(torch.uint8)
    large = torch.rand(3, 300, 200, generator=torch.Generator().manual_seed(0))
    record = record_of([0, 1], [1, 1])
    first, second = examples(record, [checks, large], classes=[0, 1]).classes
    small = opened(first.random_kept[0].png)
    assert small.size == (48, 48)
    assert set(np.array(small).flatten()) == {0, 255}
    thumbnail = opened(second.random_kept[0].png)
    assert thumbnail.size == (32, 48)
    assert np.array(thumbnail).std() < 40  # noise of deviation 74
    assert len(second.random_kept[0].png) < 48 * 48 * 3 + 500


@pytest.mark.parametrize(
    ("sample", "words"),
    [
        ((torch.rand(20), 3), r"a tuple with a Tensor \[20\] first"),
        ({"input_ids": torch.ones(5), "label": 2}, "a dict with input_ids, label"),
        ("a sentence", "a str"),
        (torch.rand(7, 9, 5), r"a Tensor \[7, 9, 5\]"),
        (np.array(["a"]), r"a ndarray \[1\]"),
        ((), "a tuple"),
        (torch.zeros(0, 3), r"a Tensor \[0, 3\]"),
        ([[[[torch.rand(3, 4, 4)]]]], "a list with"),
    ],
)
def test_what_is_no_image_gives_a_reason(sample: Any, words: str) -> None:
    found = examples(record_of([0], [1]), [sample])
    assert found.classes == ()
    assert re.search(f"The samples are not images: sample 0 is {words}", found.reason)


def test_datasets_that_cannot_be_looked_up_give_a_reason() -> None:
    class Stream(IterableDataset[int]):
        def __iter__(self) -> Iterator[int]:
            return iter([1])

    class Gone(Counted):
        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            raise FileNotFoundError(f"no file {index}.png")

    record = record_of([0], [1])
    assert "not map-style" in examples(record, Stream()).reason
    assert "not map-style" in examples(record, iter([1])).reason
    assert examples(record, Gone(1)).reason == "Sample 0 cannot be read: no file 0.png."


class Augmented(Dataset[Tensor]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        noise = torch.rand(3, 8, 8) + float(np.random.rand()) + random.random()  # noqa: NPY002
        return noise / 3


def test_random_augmentation_leaves_the_caller_alone() -> None:
    def state() -> tuple[Any, ...]:
        return torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())  # noqa: NPY002

    before = state()
    record = record_of([0, 0, 1, 1], [1, 1])
    found = examples(record, Augmented())
    assert state() == before
    torch.rand(1)
    assert examples(record, Augmented()) == found

    class Broken(Augmented):
        def __getitem__(self, index: int) -> Tensor:
            random.random()
            raise RuntimeError("broken")

    before = state()
    with pytest.raises(RuntimeError, match="broken"):
        examples(record, Broken())
    assert state() == before


def test_wrong_arguments() -> None:
    record = record_of([0, 1], [1, 1])
    with pytest.raises(ValueError, match=r"`dataset` must be the one that was pruned, of 2.*got 3"):
        examples(record, Counted(3))
    with pytest.raises(ValueError, match=r"`classes` must be in \[0, 2\), got 2"):
        examples(record, Counted(2), classes=[0, 2])
    with pytest.raises(ValueError, match="`per_class` and `size` must be at least 1, got 0 and 48"):
        examples(record, Counted(2), per_class=0)


def test_without_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r"Pillow: pip install 'lightning-fairprune\[report\]'"):
        examples(record_of([0], [1]), Counted(1))


def test_cifar10() -> None:
    root = os.environ.get("FAIRPRUNE_DATA")
    if root is None or not (path := Path(root) / "cifar10/test.npz").is_file():
        pytest.skip("set FAIRPRUNE_DATA to a folder that holds cifar10/test.npz to show its images")
    with np.load(path) as archive:
        data, offsets = archive["jpeg"].tobytes(), archive["offsets"]
        target = torch.from_numpy(archive["labels"].astype(np.int64))

    class Files(Counted):
        def __getitem__(self, index: int) -> Any:
            return Image.open(io.BytesIO(data[offsets[index] : offsets[index + 1]])), 0

    score = torch.rand(len(target), generator=torch.Generator().manual_seed(0))
    kept = select(target, torch.full((10,), 300))
    found = examples(PruningRecord(kept, target, score), Files(len(target)))
    assert len(found.classes) == 10
    assert all(len(getattr(entry, kind)) == 6 for entry in found.classes for kind in KINDS)
    assert opened(found.classes[0].hardest_kept[0].png).size == (48, 48)
