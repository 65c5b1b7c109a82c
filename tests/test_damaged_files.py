"""Whatever is wrong with a file, its reader says so in one sentence that names the file."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from faults.mutations import FILES, TARGET, content_of, judged, mutations, selection
from safetensors import safe_open
from safetensors.torch import save_file

import lightning_fairprune as lfp
from lightning_fairprune._files import write_tensors


def sentence(read: Callable[[Path], Any], path: Path) -> str | None:
    """What a reader says, if it refuses the file; it may raise nothing but a ValueError."""
    try:
        read(path)
    except ValueError as error:
        return str(error)
    return None


def same(found: lfp.Selection, expected: lfp.Selection) -> None:
    if not torch.equal(found.indices, expected.indices):
        raise AssertionError("an index changed unnoticed")


@pytest.mark.parametrize("name", FILES)
def test_every_length_and_every_byte(name: str, tmp_path: Path) -> None:
    write, read = FILES[name]
    path = tmp_path / name
    write(path)
    whole, draw = path.read_bytes(), random.Random(0)
    cut = [whole[:length] for length in draw.sample(range(len(whole)), 60)]
    flipped = []
    for place in draw.sample(range(len(whole)), min(len(whole), 300)):
        byte = whole[place] ^ 1 << draw.randrange(8)
        flipped.append(whole[:place] + bytes([byte]) + whole[place + 1 :])
    other = [draw.randbytes(200), b"", b"[" * 5000, b"{}", b"null", b"\xff\xfe"]
    read(path)
    refused = 0
    for content in [*cut, *flipped, *other]:
        path.write_bytes(content)
        told = sentence(read, path)
        assert told is None or str(path) in told
        refused += told is not None
    assert refused >= len(cut) - 1 + len(other)  # the newline at the end of JSON may go


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".safetensors")])
def test_no_bit_of_the_tensors_flips_unnoticed(name: str, tmp_path: Path) -> None:
    write, read = FILES[name]
    path = tmp_path / name
    write(path)
    whole = path.read_bytes()
    begin = 8 + int.from_bytes(whole[:8], "little")
    for place in range(begin, len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(ValueError, match=r"damaged \(its content does not have the checksum"):
            read(path)


def test_no_index_in_a_parquet_file_changes_unnoticed(tmp_path: Path) -> None:
    path = tmp_path / "kept.parquet"
    target = torch.arange(1000) % 3
    kept = lfp.select(target, torch.tensor([100, 100, 100]))
    kept.to_parquet(path)
    whole, draw = path.read_bytes(), random.Random(0)
    for place in draw.sample(range(len(whole)), 400):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        told = sentence(lambda path: same(lfp.Selection.from_parquet(path, target), kept), path)
        assert told is None or str(path) in told


def stored(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors, or {}, and the metadata or the content of a JSON file."""
    if path.suffix == ".json":
        return {}, json.loads(path.read_text())
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def store(path: Path, tensors: dict[str, torch.Tensor], about: dict[str, Any]) -> None:
    if path.suffix == ".json":
        path.write_text(json.dumps(about))
    else:
        save_file(tensors, path, about)


VERSIONED = [name for name in FILES if not name.endswith(".parquet")]


@pytest.mark.parametrize("name", VERSIONED)
def test_the_checksum_is_required(name: str, tmp_path: Path) -> None:
    write, read = FILES[name]
    path = tmp_path / name
    write(path)
    tensors, about = stored(path)
    assert about["version"] == "2"
    del about["checksum"]
    store(path, tensors, about)
    with pytest.raises(ValueError, match="it must have the checksum of its content, and has none"):
        read(path)
    store(path, tensors, about | {"version": "1"})
    with pytest.warns(UserWarning, match=f"{name}' has format version 1, .* has no checksum"):
        read(path)
    store(path, tensors, about | {"version": "3"})
    with pytest.raises(ValueError, match="format version 3, this release reads 1 and 2: upgrade"):
        read(path)


def test_the_checksum_of_indices_in_parquet_is_required(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "kept.parquet"
    selection().to_parquet(path)
    table = parquet.read_table(path)
    marks = table.schema.metadata
    key, version = b"lightning_fairprune.Selection", b"lightning_fairprune.version"
    for metadata, match in (
        ({version: marks[version]}, "is damaged"),
        ({key: marks[key].replace(b"checksum", b"other"), version: b"2"}, "must have the checksum"),
        ({key: marks[key].replace(b'"seed": 0', b'"seed": 1'), version: b"2"}, "have the checksum"),
    ):
        parquet.write_table(table.replace_schema_metadata(metadata), path)
        with pytest.raises(ValueError, match=match):
            lfp.Selection.from_parquet(path, TARGET)
    other = table.set_column(0, "index", [[0, 1, 5]])
    parquet.write_table(other.replace_schema_metadata(marks), path)
    with pytest.raises(ValueError, match="its indices do not have the checksum"):
        lfp.Selection.from_parquet(path, TARGET)
    settings = b'{"num_samples": 6, "num_classes": 3, "keep": "random", "seed": 4}'
    parquet.write_table(table.replace_schema_metadata({key: settings}), path)
    with pytest.warns(UserWarning, match="has format version 1, .* has no checksum"):
        assert lfp.Selection.from_parquet(path, TARGET).seed == 4


@pytest.mark.parametrize("name", VERSIONED)
def test_a_pointer_of_git_lfs_is_called_so(name: str, tmp_path: Path) -> None:
    oid = f"oid sha256:{'0' * 64}\nsize 12345\n"
    (tmp_path / name).write_text(f"version https://git-lfs.github.com/spec/v1\n{oid}")
    with pytest.raises(ValueError, match=f"{name}' .* is a pointer of Git LFS.* `git lfs pull`"):
        FILES[name][1](tmp_path / name)


def test_numbers_that_json_lacks_are_text(tmp_path: Path) -> None:
    lfp.SparsityRecord({"a": float("inf"), "b": [float("nan")]}, ()).save(tmp_path)
    json.loads((tmp_path / "sparsity.json").read_text(), parse_constant=pytest.fail)
    assert lfp.SparsityRecord.load(tmp_path).settings == {"a": "Infinity", "b": ["NaN"]}


@pytest.mark.parametrize("name", FILES)
def test_mutated_files_are_refused_or_the_same(name: str, tmp_path: Path) -> None:
    write, read = FILES[name]
    original = tmp_path / "original" / name
    original.parent.mkdir()
    for path in (tmp_path / name, original):
        write(path)
    if path.suffix == ".json":  # the readers of a folder prefer the other file
        (tmp_path / name).with_suffix(".safetensors").unlink(missing_ok=True)
    original.write_bytes((tmp_path / name).read_bytes())
    whole = content_of(read(tmp_path / name))
    for mutation in mutations(name, original, 1, 200):
        (tmp_path / name).write_bytes(mutation.content)
        verdict = judged(read, tmp_path / name, mutation, whole)
        assert not verdict.startswith("WRONG"), (mutation.how, verdict, mutation.content)


def test_whole_numbers_are_required_where_a_right_checksum_says_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "pruning.safetensors"
    FILES[path.name][0](path)
    tensors, about = stored(path)
    record = {"record": about["record"]}
    spoiled = tensors | {"target": tensors["target"].to(torch.complex64)}
    write_tensors(path, "PruningRecord", spoiled, record)
    with pytest.raises(ValueError, match=r"`target` must hold whole numbers, got torch.complex64"):
        lfp.PruningRecord.load(path)
    text = record["record"].replace('"seed": 0', '"seed": [0]')
    write_tensors(path, "PruningRecord", tensors, {"record": text})
    with pytest.raises(ValueError, match=r"`seed` must be a whole number of 64 bits, got \[0\]"):
        lfp.PruningRecord.load(path)


@pytest.mark.parametrize("name", [name for name in FILES if name != "pass.0.safetensors"])
def test_a_save_that_fails_leaves_the_old_files(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, _ = FILES[name]
    write(tmp_path / name)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="disk full"):
        write(tmp_path / name)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
