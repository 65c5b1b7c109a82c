"""The papers' data sets: every form on a disk, splits, long tails, what a batch goes through."""

from __future__ import annotations

import gzip
import inspect
import io
import os
import pickle
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import users
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Subset

import lightning_fairprune as lfp
from lightning_fairprune.experiments import data
from lightning_fairprune.experiments.data._augment import normalise, shift_and_flip

Image = pytest.importorskip("PIL.Image", reason="images need Pillow")
needs_torchvision = pytest.mark.skipif(find_spec("torchvision") is None, reason="needs torchvision")
MODULES = [getattr(data, n) for n in data.__all__ if hasattr(getattr(data, n), "train_dataloader")]
FORMS = ("npz", "pickles", "folder", "bare folder")


def pictures(n: int, size: int = 32, channels: int = 3, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (n, size, size, channels), dtype=np.uint8)


def write_cifar(root: Path, form: str, classes: int, each: dict[str, int]) -> dict[str, Any]:
    """Writes a small CIFAR in one of its forms; returns (images, labels) of each part, by part."""
    folder, below = f"cifar{classes}", ("cifar-10-batches-py", "cifar-100-python")[classes == 100]
    written = {}
    for part, per_class in each.items():
        labels = np.repeat(np.arange(classes), per_class)
        images = pictures(len(labels), seed=len(labels))
        written[part] = images, labels
        if form == "npz":
            (root / folder).mkdir(parents=True, exist_ok=True)
            files = [encoded(image) for image in images]
            np.savez(
                root / folder / f"{part}.npz",
                jpeg=np.frombuffer(b"".join(files), np.uint8),
                offsets=np.cumsum([0, *map(len, files)]),
                labels=labels.astype(np.uint8),
            )
        elif form == "pickles":
            (root / below).mkdir(parents=True, exist_ok=True)
            ten = {"train": "data_batch_", "test": "test_batch"}
            names = ten if classes == 10 else {"train": "train", "test": "test"}
            batches = 5 if classes == 10 and part == "train" else 1
            rows = np.arange(len(labels)).reshape(batches, -1)
            for i, chosen in enumerate(rows):
                flat = images[chosen].transpose(0, 3, 1, 2).reshape(len(chosen), -1)
                content = {"data": flat, ("labels", "fine_labels")[classes == 100]: None}
                content[list(content)[1]] = labels[chosen].tolist()
                name = names[part] + (str(i + 1) if batches > 1 else "")
                (root / below / name).write_bytes(pickle.dumps(content, protocol=2))
        else:
            names_ = (data.CIFAR10 if classes == 10 else data.CIFAR100).names
            base = root / folder / part if form == "folder" else root / part
            for i, (image, label) in enumerate(zip(images, labels, strict=True)):
                path = base / names_[label] / f"{i:05d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(encoded(image))
    return written


def encoded(image: np.ndarray, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, form)
    return file.getvalue()


def ready(module: Any) -> Any:
    module.setup("fit")
    return module


def cifar10(tmp_path: Path, **options: Any) -> data.CIFAR10:
    write_cifar(tmp_path, "pickles", 10, {"train": 10, "test": 4})
    return data.CIFAR10(str(tmp_path), **options)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("classes", [10, 100])
def test_every_form_of_cifar_gives_the_same_images(tmp_path: Path, form: str, classes: int) -> None:
    written = write_cifar(tmp_path, form, classes, {"train": 5 if classes == 10 else 1, "test": 2})
    kind = data.CIFAR10 if classes == 10 else data.CIFAR100
    module = kind(str(tmp_path))
    assert module.targets.tolist() == written["train"][1].tolist()  # before any decoding
    module.setup("fit")
    assert module.train_set.images.tolist() == written["train"][0].tolist()
    assert module.train_set.targets.tolist() == written["train"][1].tolist()
    assert module.val_set.targets.tolist() == list(range(classes))
    assert module.num_classes == classes == len(set(module.class_names))


def python2_pickle(flat: np.ndarray, labels: list[int]) -> bytes:
    """Returns a batch as Python 2 wrote it in 2009: byte strings, and a dtype with align=0."""
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
    shape = b"".join(b"J" + n.to_bytes(4, "little") for n in flat.shape) + b"\x86"
    dtype = b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNN"
    dtype += 2 * b"J\xff\xff\xff\xff" + b"K\x00tb"
    pixels = b"T" + flat.nbytes.to_bytes(4, "little") + flat.tobytes()
    data_ = b"U\x04data" + array + b"(K\x01" + shape + dtype + b"\x89" + pixels + b"tb"
    listed = b"U\x06labels](" + b"".join(b"K" + bytes([k]) for k in labels) + b"e"
    return b"\x80\x02}(" + data_ + listed + b"u."


def test_the_pickles_of_2009_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for i, name in enumerate([*(f"data_batch_{j}" for j in range(1, 6)), "test_batch"]):
        images = pictures(20, seed=i)
        flat = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(20, -1)
        (folder / name).write_bytes(python2_pickle(flat, [k % 10 for k in range(20)]))
    module = ready(data.CIFAR10(str(tmp_path)))
    assert module.train_set.images[40:60].tolist() == pictures(20, seed=2).tolist()
    assert module.targets.bincount().tolist() == [10] * 10


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", [data.MNIST, data.FashionMNIST])
def test_mnist_is_read_as_torchvision_leaves_it(tmp_path: Path, kind: Any, packed: bool) -> None:
    raw = tmp_path / kind.folder / "raw"
    raw.mkdir(parents=True)
    for prefix, n in (("train", 30), ("t10k", 20)):
        images, labels = pictures(n, 28, 1, seed=n)[..., 0], np.arange(n, dtype=np.uint8) % 10
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
            content, path = header + array.tobytes(), raw / f"{prefix}-{name}-ubyte"
            if packed:
                path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(content))
            else:
                path.write_bytes(content)
    module = ready(kind(str(tmp_path)))
    assert module.train_set.images[..., 0].tolist() == pictures(30, 28, 1, seed=30)[..., 0].tolist()
    assert module.targets.tolist() == list(range(10)) * 3
    assert len(module.val_set) == len(module.test_set) == 10
    images, labels = next(iter(module.plain_dataloader()))
    assert images.shape == (30, 1, 28, 28)


def write_tiny(root: Path) -> None:
    base = root / "tiny-imagenet-200"
    for k, name in enumerate(("n02", "n01")):
        (base / "train" / name / "images").mkdir(parents=True)
        for i in range(4):
            grey = np.full((64, 64), 10 * k + i, np.uint8)  # some are grey, as in the real set
            path = base / "train" / name / "images" / f"{name}_{i}.JPEG"
            path.write_bytes(encoded(grey, "JPEG"))
    (base / "val" / "images").mkdir(parents=True)
    lines = []
    for i, name in enumerate(("n01", "n02", "n01", "n02")):
        image = np.full((64, 64, 3), 50 + i, np.uint8)
        (base / "val" / "images" / f"val_{i}.JPEG").write_bytes(encoded(image, "JPEG"))
        lines.append(f"val_{i}.JPEG\t{name}\t0\t0\t62\t62\n")
    (base / "val" / "val_annotations.txt").write_text("".join(lines))
    (base / "words.txt").write_text("n01\tgoldfish, Carassius auratus\nn03\tshark\n")


def test_tiny_imagenet_is_read_as_it_is_distributed(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    module = ready(data.TinyImageNet(str(tmp_path), split="clean", val_fraction=0.25))
    assert module.class_names == ("goldfish", "n02")
    assert module.targets.tolist() == [0, 0, 0, 1, 1, 1]
    assert module.val_set.targets.tolist() == [0, 1]
    # Class 0 is n01, whose images were written with 10 and more.
    assert module.train_set.images[:, 0, 0, 2].tolist() == [10, 11, 12, 13, 0, 1, 2, 3]
    assert module.test_set.images[:, 5, 5, 0].tolist() == [50, 51, 52, 53]
    assert module.test_set.targets.tolist() == [0, 1, 0, 1]


def test_images_of_several_sizes_are_refused(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    odd = tmp_path / "tiny-imagenet-200" / "train" / "n02" / "images" / "n02_2.JPEG"
    odd.write_bytes(encoded(pictures(1, 48)[0], "JPEG"))
    with pytest.raises(ValueError, match=r"one size .* image 6 is 48x48, the first 64x64"):
        data.TinyImageNet(str(tmp_path)).setup("fit")


def test_digits_come_with_scikit_learn() -> None:
    pytest.importorskip("sklearn")
    module = ready(data.Digits())
    sets = (module.train_set, module.val_set, module.test_set)
    rows = [{bytes(image.numpy()) for image, _ in s} for s in sets if s is not None]
    assert sum(map(len, rows)) == len(set().union(*rows))  # no image twice
    assert all(len(s) == len(r) for s, r in zip(sets, rows, strict=True))
    assert sum(map(len, rows)) == 1797
    pixels = module.train_set.images[module.train_set.rows].float()
    assert float(pixels.mean()) == pytest.approx(module.mean[0], abs=0.5)
    assert float(pixels.std()) == pytest.approx(module.std[0], abs=0.5)


def test_the_names_of_cifar100() -> None:
    names = data.CIFAR100.names
    assert len(names) == len(set(names)) == 100
    assert list(names) == sorted(names)  # so that a folder of images has the official numbers
    assert names.index("worm") == 99
    assert names.index("maple_tree") == 47


def write_imagenet(root: Path) -> None:
    for part, each in (("train", 4), ("val", 2)):
        for k, name in enumerate(("n1", "n2")):
            folder = root / "imagenet" / part / name
            folder.mkdir(parents=True)
            for i in range(each):
                image = np.full((40 + i, 60, 3), 100 * k + i, np.uint8)
                (folder / f"{i}.JPEG").write_bytes(encoded(image, "JPEG"))


@needs_torchvision
@pytest.mark.parametrize("split", ["paper", "clean"])
def test_imagenet_folders(tmp_path: Path, split: Any) -> None:
    write_imagenet(tmp_path)
    options = {"val_fraction": 0.25, "image_size": 32, "num_workers": 0}
    module = data.ImageNet(str(tmp_path), 2, split=split, **options)
    assert module.targets.tolist() == ([0] * 4 + [1] * 4 if split == "paper" else [0] * 3 + [1] * 3)
    assert module.class_names == ("n1", "n2")
    assert module.num_classes == 2
    assert module.val_set.targets.tolist() == [0, 1]
    assert len(module.test_set) == (2 if split == "paper" else 4)
    images, labels = next(iter(module.train_dataloader()))
    assert images.dtype == torch.uint8
    assert images.shape == (2, 3, 32, 32)
    assert labels.dtype == torch.int64
    plain = torch.cat([x for x, _ in module.plain_dataloader()])
    assert module.on_after_batch_transfer([plain, 0], 0)[0] is plain
    # Images are of one grey value, which is the number of the file.
    value = int(module.train_set.paths[0].stem)
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    assert torch.allclose(plain[0, :, 0, 0], (value - mean) / std)


@needs_torchvision
def test_what_differs_in_the_folders_of_imagenet_is_named(tmp_path: Path) -> None:
    write_imagenet(tmp_path)
    (tmp_path / "imagenet" / "val" / "n7").mkdir()
    with pytest.raises(ValueError, match=r"found 3 and 2, which differ in 'n7'"):
        data.ImageNet(str(tmp_path)).setup("fit")


def write_waterbirds(root: Path, folder: str = "waterbirds") -> None:
    rows = ["img_id,img_filename,y,split,place,place_filename"]
    for i in range(16):
        y, place, part = i % 2, i // 2 % 2, min(i // 4, 2)
        path = root / folder / f"{i:03d}.Bird" / f"bird_{i}.jpg"
        path.parent.mkdir(parents=True)
        path.write_bytes(encoded(np.full((50, 40, 3), i, np.uint8), "JPEG"))
        rows.append(f"{i},{path.relative_to(root / folder)},{y},{part},{place},/x/y.jpg")
    (root / folder / "metadata.csv").write_text("\n".join(rows) + "\n")


@needs_torchvision
@pytest.mark.parametrize("folder", ["waterbirds", "waterbird_complete95_forest2water2"])
def test_waterbirds_carry_their_group(tmp_path: Path, folder: str) -> None:
    write_waterbirds(tmp_path, folder)
    module = data.Waterbirds(str(tmp_path), batch_size=3, image_size=32, num_workers=0)
    assert module.targets.tolist() == [0, 1, 0, 1]
    assert module.groups.tolist() == [0, 2, 1, 3]
    images, labels, groups = next(iter(module.plain_dataloader()))
    assert images.shape == (3, 3, 32, 32)
    assert groups.tolist() == [0, 2, 1]
    assert labels.tolist() == [0, 1, 0]
    assert len(module.val_set) == 4
    assert len(module.test_set) == 8
    assert module.group_names[2] == "waterbird on land"


@needs_torchvision
def test_random_crops_are_for_training_only(tmp_path: Path) -> None:
    write_waterbirds(tmp_path)
    path = tmp_path / "waterbirds" / "000.Bird" / "bird_0.jpg"
    path.write_bytes(encoded(pictures(1, 90)[0], "JPEG"))
    module = ready(data.Waterbirds(str(tmp_path), image_size=32, num_workers=0))
    assert not torch.equal(module.train_set[0][0], module.train_set[0][0])
    plain = module.plain_dataloader().dataset
    assert torch.equal(plain[0][0], plain[0][0])
    module = ready(data.Waterbirds(str(tmp_path), image_size=32, num_workers=0, augment=False))
    normalised, _ = module.on_after_batch_transfer([module.train_set[0][0][None], 0], 0)
    assert torch.allclose(normalised[0], plain[0][0], atol=1e-5)


@pytest.mark.parametrize("kind", MODULES)
def test_absent_data_says_what_to_put_where(tmp_path: Path, kind: Any) -> None:
    if "root" not in inspect.signature(kind).parameters or kind is data.ImagesInMemory:
        return
    match = r"must hold .* found no(ne| such) .*FAIRPRUNE_DATA"
    with pytest.raises(FileNotFoundError, match=match):
        kind(str(tmp_path / "nowhere")).setup("fit")


def test_the_environment_names_the_root(tmp_path: Path, monkeypatch: Any) -> None:
    write_cifar(tmp_path, "npz", 10, {"train": 2, "test": 2})
    monkeypatch.setenv("FAIRPRUNE_DATA", str(tmp_path))
    assert len(data.CIFAR10().targets) == 20
    monkeypatch.delenv("FAIRPRUNE_DATA")
    assert data.CIFAR10().root == Path("data")


@needs_torchvision
def test_download_is_left_to_torchvision(tmp_path: Path, monkeypatch: Any) -> None:
    from torchvision import datasets

    asked = []
    monkeypatch.setattr(datasets, "FashionMNIST", lambda *a, **k: asked.append((a, k)))
    data.FashionMNIST(str(tmp_path), download=True).prepare_data()
    assert [k for _, k in asked] == [{"train": t, "download": True} for t in (True, False)]
    data.FashionMNIST(str(tmp_path)).prepare_data()
    assert len(asked) == 2
    with pytest.raises(ValueError, match="`download` must be false for TinyImageNet"):
        data.TinyImageNet(str(tmp_path), download=True).prepare_data()


def test_a_class_without_images_is_an_error(tmp_path: Path) -> None:
    write_cifar(tmp_path, "folder", 10, {"train": 2, "test": 2})
    for file in (tmp_path / "cifar10" / "test" / "cat").iterdir():
        file.unlink()
    with pytest.raises(ValueError, match=r"test part of CIFAR10 .* 10 classes .* found 9 in 18"):
        data.CIFAR10(str(tmp_path)).setup("fit")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "half"}, "`split` must be 'paper' or 'clean', got 'half'"),
        ({"val_fraction": 1.0}, r"`val_fraction` must be in \(0, 1\), got 1.0"),
        ({"imbalance": 0.1}, r"`imbalance` must be at least 1, .*got 0.1"),
        ({"border": "wrap"}, "`border` must be 'reflect' or 'zero', got 'wrap'"),
        ({"shift": -1}, "`shift` must be at least 0 pixels, got -1"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data.CIFAR10(**options)
    shared = {k: v for k, v in options.items() if k in ("split", "val_fraction")}
    if shared:
        with pytest.raises(ValueError, match=message):
            data.ImageNet(**shared)


def test_loaders_need_setup(tmp_path: Path) -> None:
    for module in (data.CIFAR10(), data.ImageNet()):
        with pytest.raises(RuntimeError, match=r"call setup\(\) of .* before"):
            module.train_dataloader()


def test_a_subclass_must_read() -> None:
    class Mine(data.ImagesInMemory):
        folder, names, mean, std = "mine", ("a", "b"), (0.0,), (1.0,)

    with pytest.raises(NotImplementedError, match=r"Mine must have a method read\(part\)"):
        Mine().setup("fit")


def test_stratified_halves_have_half_of_each_class() -> None:
    labels = torch.tensor([1, 0, 1, 2, 1, 0, 1, 2, 1, 3])
    first, second = data.stratified(labels, 0.5, seed=3)
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(10))
    assert labels[first].bincount(minlength=4).tolist() == [1, 2, 1, 0]
    assert first.tolist() == sorted(first.tolist())
    again, _ = data.stratified(labels, 0.5, seed=3)
    assert torch.equal(first, again)
    draws = {tuple(data.stratified(labels, 0.5, seed=s)[0].tolist()) for s in range(20)}
    assert len(draws) > 5
    with pytest.raises(ValueError, match=r"`fraction` must be in \(0, 1\), got 0"):
        data.stratified(labels, 0)


def test_a_small_class_is_on_both_sides() -> None:
    labels = torch.tensor([0] * 100 + [1, 1])
    for fraction in (0.01, 0.99):
        first, second = data.stratified(labels, fraction)
        assert 1 in labels[first]
        assert 1 in labels[second]


@pytest.mark.parametrize(("classes", "factor", "total"), [(10, 100, 12_406), (100, 100, 10_847)])
def test_long_tails_are_those_of_the_literature(classes: int, factor: float, total: int) -> None:
    # CIFAR-10-LT and CIFAR-100-LT as others count them (Cao et al. 2019).
    sizes = data.long_tailed_sizes(torch.full((classes,), 50_000 // classes), factor)
    assert int(sizes.sum()) == total
    assert int(sizes[0]) == 50_000 // classes
    assert int(sizes[-1]) == 500 // classes


def test_long_tailed_sizes_against_a_loop() -> None:
    sizes = [97, 400, 33, 250, 5]
    expected = [min(size, int(400 * 20.0 ** (-k / 4))) for k, size in enumerate(sizes)]
    assert data.long_tailed_sizes(torch.tensor(sizes), 20.0).tolist() == expected
    assert data.long_tailed_sizes(torch.tensor([7]), 9.0).tolist() == [7]
    with pytest.raises(ValueError, match=r"`imbalance` must be at least 1, .*got 0.5"):
        data.long_tailed_sizes(torch.tensor([3, 3]), 0.5)


def test_more_imbalance_only_takes_away() -> None:
    labels = torch.arange(10).repeat(50)
    mild, strong = (set(data.long_tailed(labels, f, seed=1).tolist()) for f in (5, 50))
    assert strong < mild
    other = set(data.long_tailed(labels, 5, seed=2).tolist())
    assert other != mild
    assert len(other) == len(mild)


def test_only_training_is_long_tailed(tmp_path: Path) -> None:
    module = ready(cifar10(tmp_path, imbalance=10, split="clean", val_fraction=0.2))
    assert module.targets.bincount().tolist() == [8, 6, 4, 3, 2, 2, 1, 1, 1, 1]
    assert module.val_set.targets.bincount().tolist() == [2] * 10
    assert module.test_set.targets.bincount().tolist() == [4] * 10


def test_the_clean_split_shares_no_image_with_training(tmp_path: Path) -> None:
    module = ready(cifar10(tmp_path, split="clean", val_fraction=0.3))
    rows = module.train_set.rows.tolist() + module.val_set.rows.tolist()
    assert sorted(rows) == list(range(100))


def test_the_papers_split_halves_the_test_set(tmp_path: Path) -> None:
    module = ready(cifar10(tmp_path))
    assert len(module.targets) == 100
    assert sorted(module.val_set.rows.tolist() + module.test_set.rows.tolist()) == list(range(40))
    assert module.val_set.targets.bincount().tolist() == [2] * 10


def test_a_batch_is_one_indexing_operation(tmp_path: Path) -> None:
    dataset = ready(cifar10(tmp_path, imbalance=10)).train_set
    images, labels = dataset.__getitems__([3, 0, 11])
    for i, index in enumerate([3, 0, 11]):
        image, label = dataset[index]
        assert torch.equal(images[i], image)
        assert int(labels[i]) == label


def test_wrappers_of_the_data_set_collate_too(tmp_path: Path) -> None:
    module = ready(cifar10(tmp_path))
    loader, dataset = module.train_dataloader(), module.train_set
    both = ConcatDataset([Subset(dataset, [4]), Subset(dataset, [2])])
    for wrapped in (Subset(dataset, [4, 2]), both):
        images, labels = next(iter(DataLoader(wrapped, 2, collate_fn=loader.collate_fn)))
        assert torch.equal(images, dataset.images[[4, 2]])
        assert labels.tolist() == dataset.targets[[4, 2]].tolist()


def test_shift_and_flip_are_pad_and_crop() -> None:
    torch.manual_seed(3)
    images = torch.randint(0, 256, (64, 9, 7, 2), dtype=torch.uint8)
    for border in ("reflect", "zero"):
        moved = shift_and_flip(images, 2, border=border)
        assert moved.dtype == images.dtype
        mode = "reflect" if border == "reflect" else "constant"
        padded = F.pad(images.permute(0, 3, 1, 2).float(), (2, 2, 2, 2), mode=mode)
        seen = set()
        for i in range(64):
            options = {
                (dy, dx, flip): crop.flip(-1) if flip else crop
                for dy in range(5)
                for dx in range(5)
                for flip in (False, True)
                for crop in [padded[i, :, dy : dy + 9, dx : dx + 7]]
            }
            image = moved[i].permute(2, 0, 1).float()
            same = [option for option, crop in options.items() if torch.equal(crop, image)]
            assert len(same) == 1, "every image is one crop of its padded self"
            seen |= {("y", same[0][0]), ("x", same[0][1]), ("flip", same[0][2])}
        assert len(seen) == 5 + 5 + 2


def test_neither_shift_nor_flip_changes_nothing() -> None:
    images = torch.randint(0, 256, (5, 6, 6, 1), dtype=torch.uint8)
    assert torch.equal(shift_and_flip(images, 0, flip=False), images)
    assert torch.equal(shift_and_flip(images, 0, flip=False, border="zero"), images)


def test_normalise_against_a_loop() -> None:
    images = torch.randint(0, 256, (2, 4, 4, 3), dtype=torch.uint8)
    mean, std = torch.tensor([1.0, 20.0, 30.0]), torch.tensor([2.0, 4.0, 5.0])
    out = normalise(images, mean, std)
    assert out.shape == (2, 3, 4, 4)
    assert out.is_contiguous(memory_format=torch.channels_last)
    for c in range(3):
        assert torch.allclose(out[:, c], (images[..., c].float() - mean[c]) / std[c])


class Looking(pl.LightningModule):
    """Keeps the batches of each stage."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(3 * 32 * 32, 10)
        self.seen: dict[str, list[Tensor]] = {"train": [], "val": [], "test": []}

    def step(self, stage: str, batch: Any) -> Tensor:
        self.seen[stage].append(batch[0].clone())
        return F.cross_entropy(self.net(batch[0].flatten(1)), batch[1])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.step("train", batch)

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.step("val", batch)

    def test_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.step("test", batch)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 1e-4)


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("augment", [True, False])
def test_only_training_batches_are_augmented(tmp_path: Path, augment: bool, wrapped: bool) -> None:
    module = cifar10(tmp_path, augment=augment, batch_size=100)
    used = lfp.FairPruneDataModule(module) if wrapped else module
    model = Looking()
    runner = users.trainer(max_epochs=1, num_sanity_val_steps=1)
    runner.fit(model, used)
    runner.test(model, used, verbose=False)
    plain = next(iter(module.plain_dataloader()))[0]
    known = {row.numpy().tobytes() for row in plain.contiguous()}
    trained = {row.numpy().tobytes() for row in model.seen["train"][0].contiguous()}
    assert len(trained) == 100
    assert (trained == known) is not augment
    for stage, dataset in (("val", module.val_set), ("test", module.test_set)):
        mean, std = torch.tensor(module.mean), torch.tensor(module.std)
        expected = normalise(dataset.images[dataset.rows], mean, std)
        assert torch.equal(model.seen[stage][-1], expected)


def test_a_scoring_pass_sees_plain_images(tmp_path: Path) -> None:
    module = cifar10(tmp_path, batch_size=20)
    model = Looking()
    score_on = lfp.ScorePass("plain_dataloader")
    how: Any = {"score": lfp.scores.el2n, "keep": "hard", "after": "restart", "score_on": score_on}
    prune = lfp.DataPruning(density=0.5, warmup_epochs=1, **how)
    runner = users.trainer(max_epochs=2, num_sanity_val_steps=1, callbacks=[prune])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # quotas of so few samples
        runner.fit(model, module)
    assert len(prune.selection.indices) == 50
    # Outside of a Trainer it is the same loader, ready for a network.
    network, loader = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)), module.plain_dataloader()
    score = lfp.score_pass(network, loader, lfp.scores.el2n, progress=False)
    assert score.shape == (100,)


def test_decoded_images_are_kept_and_shared(tmp_path: Path, monkeypatch: Any) -> None:
    written = write_cifar(tmp_path, "npz", 10, {"train": 3, "test": 2})
    cache = tmp_path / "cache"
    data.CIFAR10(str(tmp_path), cache=str(cache)).prepare_data()
    files = sorted(path.name.rsplit("-", 1)[0] for path in cache.iterdir())
    assert files == ["cifar10-test", "cifar10-train"]

    def never(path: Path) -> np.ndarray:
        raise AssertionError("decoded a second time")

    monkeypatch.setattr("lightning_fairprune.experiments.data._read._decode_jpegs", never)
    module = ready(data.CIFAR10(str(tmp_path), cache=str(cache)))
    assert module.train_set.images.tolist() == written["train"][0].tolist()


def test_other_data_has_another_cache(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    for each in (2, 3):
        written = write_cifar(tmp_path, "npz", 10, {"train": each, "test": 2})
        module = ready(data.CIFAR10(str(tmp_path), cache=str(cache)))
        assert module.train_set.images.tolist() == written["train"][0].tolist()


@pytest.mark.parametrize("kind", MODULES)
def test_every_data_module_can_be_written_in_yaml(kind: Any, monkeypatch: Any) -> None:
    import jsonargparse

    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # newer ones rename a method
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(pl.LightningDataModule, "data")
    if kind is data.ImagesInMemory:
        return
    path = f"lightning_fairprune.experiments.data.{kind.__name__}"
    options = {"batch_size": 7}
    if "imbalance" in inspect.signature(kind).parameters:
        options["imbalance"] = 10
    found = parser.parse_object({"data": {"class_path": path, "init_args": options}})
    module = parser.instantiate_classes(found).data
    assert type(module) is kind
    assert module.batch_size == 7
    assert all(hasattr(module, n) for n in ("groups", "group_names", "plain_dataloader"))


def test_the_real_cifar10() -> None:
    root = os.environ.get("FAIRPRUNE_DATA")
    if not root or not (Path(root) / "cifar10").exists():
        pytest.skip("real CIFAR-10 is read when FAIRPRUNE_DATA names its folder")
    module = data.CIFAR10(root)
    assert module.targets.bincount().tolist() == [5000] * 10
    module.setup("fit")
    assert module.val_set.targets.bincount().tolist() == [500] * 10
    pixels = module.train_set.images[::7].float()
    assert pixels.mean((0, 1, 2)).tolist() == pytest.approx(module.mean, abs=0.5)
    assert pixels.std((0, 1, 2)).tolist() == pytest.approx(module.std, abs=0.5)
