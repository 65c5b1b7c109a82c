"""Mutated files: what a disk, a transfer, an editor or an adversary can make of the bytes of a record."""

from __future__ import annotations

import json
import random
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

import lightning_fairprune as lfp
from lightning_fairprune import representation
from lightning_fairprune._files import json_text, write_json, write_tensors
from lightning_fairprune.experiments._store import RESULT, read_result
from lightning_fairprune.history import Evaluation
from lightning_fairprune.records.sparsity_record import PruneStep
from lightning_fairprune.scoring.file import PassFile
from lightning_fairprune.selection.decision import Estimate

SECONDS = 10  # for one small file; a reader that needs longer hangs
TARGET = torch.tensor([0, 1, 0, 1, 2, 2])


def dynamics(path: Path) -> None:
    signals = {"loss": torch.rand(2, 6), "correct": torch.rand(2, 6) > 0.5}
    lfp.Dynamics(TARGET, signals, group=TARGET).save(path)


def selection() -> lfp.Selection:
    return lfp.select(TARGET, torch.tensor([1, 1, 1]))


def pruning(path: Path) -> None:
    estimates = (Estimate(0, torch.rand(3), torch.tensor([1, 1, 1])),)
    settings = {"density": 0.5}
    lfp.PruningRecord(selection(), TARGET, torch.rand(6), estimates, settings).save(path.parent)


def recalls(path: Path) -> None:
    counts = lfp.ClassCounts(torch.tensor([9, 3]), torch.tensor([10, 5]))
    evaluations = [Evaluation(name, 1, 100, False, counts) for name in ("val", "test")]
    lfp.RecallHistory(tuple(evaluations), ("cat", "dog"), {"val": counts}).save(path.parent)


def sparsity(path: Path) -> None:
    step = PruneStep(2, 100, 0.5, 0.5, {"fc": 0.5, "empty": float("nan")})
    lfp.SparsityRecord({"criterion": "magnitude"}, (step,)).save(path.parent)


def passed(path: Path) -> PassFile:
    found = PassFile(path.with_name("pass.safetensors"), "0")
    assert found.path == path
    return found


def result(path: Path) -> None:
    content = {"recall": [0.5, 1.0], "worst": 0.5, "settings": {"epochs": 3}}
    write_json(path, "ExperimentResult", content)


Write = Callable[[Path], object]
Read = Callable[[Path], Any]
FILES: dict[str, tuple[Write, Read]] = {
    "dynamics.safetensors": (dynamics, lfp.Dynamics.load),
    "kept.safetensors": (lambda path: selection().save(path), lfp.Selection.load),
    "kept.parquet": (
        lambda path: selection().to_parquet(path),
        lambda path: lfp.Selection.from_parquet(path, TARGET),
    ),
    "pruning.safetensors": (pruning, lfp.PruningRecord.load),
    "recalls.safetensors": (recalls, lfp.RecallHistory.load),
    "recalls.json": (recalls, lfp.RecallHistory.load),
    "sparsity.json": (sparsity, lfp.SparsityRecord.load),
    "similarity.json": (
        lambda path: representation.save(path, {"conv": 0.9, "fc": float("nan")}),
        representation.load,
    ),
    "pass.0.safetensors": (
        lambda path: passed(path).write("a" * 64, {"score": torch.rand(6)}, 2),
        lambda path: passed(path).read("a" * 64),
    ),
    RESULT: (result, lambda path: read_result(path.parent)),
}


@dataclass
class Mutation:
    """What became of a file: its bytes, and whether its checksum was computed again."""

    how: str
    content: bytes
    hostile: bool = False


def mutations(name: str, path: Path, seed: int, count: int) -> Iterator[Mutation]:
    """Yields `count` mutations of the file at `path`, the same for the same seed; half of them keep the checksum."""
    whole, draw = path.read_bytes(), random.Random(f"{name} {seed}")
    parts = None if name.endswith(".parquet") else _parts(path)
    for i in range(count):
        if i % 2 and parts is not None:
            yield Mutation("content", _hostile(path, *parts, draw), hostile=True)
        elif i % 4 == 2 and not name.endswith(".parquet"):
            text = _edited_json if name.endswith(".json") else _edited_header
            yield Mutation("edited", text(whole, draw))
        else:
            how = draw.choice(list(BYTES))
            content = whole
            for _ in range(draw.choice((1, 1, 1, 2, 8))):
                content = BYTES[how](content, draw)
            yield Mutation(how, content)


def _flip(whole: bytes, draw: random.Random) -> bytes:
    if not whole:
        return whole
    place = draw.randrange(len(whole))
    return whole[:place] + bytes([whole[place] ^ 1 << draw.randrange(8)]) + whole[place + 1 :]


def _put(whole: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(whole) + 1)
    return whole[:place] + draw.randbytes(draw.choice((1, 1, 8, 300))) + whole[place:]


def _take(whole: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(whole) + 1)
    return whole[:place] + whole[place + draw.choice((1, 1, 8, 300)) :]


def _cut(whole: bytes, draw: random.Random) -> bytes:
    return whole[: draw.randrange(len(whole) + 1)]


def _twice(whole: bytes, draw: random.Random) -> bytes:
    first, last = sorted(draw.randrange(len(whole) + 1) for _ in range(2))
    return whole[:last] + whole[first:]


def _over(whole: bytes, draw: random.Random) -> bytes:
    """A block of zeros, or of another place."""
    first, other = (draw.randrange(len(whole) + 1) for _ in range(2))
    size = draw.choice((1, 4, 8, 64))
    block = bytes(size) if draw.random() < 0.5 else whole[other : other + size]
    return whole[:first] + block + whole[first + len(block) :]


def _begin(whole: bytes, draw: random.Random) -> bytes:
    """Another length of the header."""
    length = draw.choice((0, 1, 2**31, 2**40, 2**62, 2**64 - 1, draw.randrange(2 * len(whole) + 1)))
    return length.to_bytes(8, "little") + whole[8:]


BYTES = {
    "flipped": _flip,
    "inserted": _put,
    "removed": _take,
    "truncated": _cut,
    "repeated": _twice,
    "overwritten": _over,
    "header": _begin,
}
_DEEP: Any = 0
for _ in range(400):
    _DEEP = [_DEEP]
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**31, 2**63, 2**64, -(2**63), 10**40, 10**400),
    *(0.5, -0.0, 1e308, 1e-320, float("nan"), float("inf"), -float("inf")),
    *(
        "",
        "a",
        "\x00",
        "\ud800",
        "🦉" * 50,
        "9" * 5000,
        "I64",
        "__metadata__",
        "../../x",
        "a" * 10_000,
    ),
    *([], {}, [0], [None], [[]], {"a": 1}, [1] * 1000, _DEEP),
)


def _changed(value: Any, draw: random.Random) -> Any:
    """Another JSON value in one place of a value."""
    children = list(value) if isinstance(value, dict) else list(range(len(value)))
    if not children:
        return draw.choice(VALUES)
    key = draw.choice(children)
    changed: Any = dict(value) if isinstance(value, dict) else list(value)
    inner, way = value[key], draw.random()
    if isinstance(inner, dict | list) and way < 0.7:
        changed[key] = _changed(inner, draw)
    elif way < 0.8:
        changed[key] = draw.choice(VALUES)
    elif way < 0.9:
        del changed[key]
    elif isinstance(changed, dict):
        changed[str(draw.choice(("a", "", "é", *children)))] = draw.choice(VALUES)
    else:
        changed.insert(key, draw.choice((inner, *VALUES)))
    return changed


def _doubled(text: str, draw: random.Random) -> str:
    """A JSON object that names its first key again."""
    value = json.dumps(draw.choice(VALUES))
    key = text[text.index('"') : text.index(":")]
    return text[: text.rindex("}")] + f", {key}: {value}" + "}"


def _edited_json(whole: bytes, draw: random.Random) -> bytes:
    if draw.random() < 0.1:
        return _doubled(whole.decode(), draw).encode()
    if draw.random() < 0.05:
        return draw.choice(
            (b"[" * 100_000, b'{"a":' * 100_000, b"1" * 100_000, b"\xef\xbb\xbf" + whole)
        )
    return json.dumps(_changed(json.loads(whole), draw)).encode()


def _edited_header(whole: bytes, draw: random.Random) -> bytes:
    end = 8 + int.from_bytes(whole[:8], "little")
    text = whole[8:end].decode()
    edited = (
        _doubled(text, draw)
        if draw.random() < 0.1
        else json.dumps(_changed(json.loads(text), draw))
    )
    header = edited.encode()
    return len(header).to_bytes(8, "little") + header + whole[end:]


def _parts(path: Path) -> tuple[str, dict[str, Tensor], dict[str, Any]]:
    """Kind, tensors and metadata of a record, or kind, {} and content of JSON."""
    if path.suffix == ".json":
        about = json.loads(path.read_text())
        tensors = {}
    else:
        with safe_open(path, "pt") as file:
            about = file.metadata()
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    return about["format"], tensors, {k: v for k, v in about.items() if k not in OWN}


OWN = ("format", "version", "checksum")


def _hostile(
    path: Path, kind: str, tensors: dict[str, Tensor], about: dict[str, Any], draw: random.Random
) -> bytes:
    """Wrong content with a right checksum."""
    if path.suffix == ".json":
        return json_text(kind, _changed(about, draw)).encode()
    tensors, about = dict(tensors), dict(about)
    for _ in range(draw.choice((1, 1, 2))):
        texts = [key for key, value in about.items() if value[:1] == "{"]
        if texts and draw.random() < 0.5:
            key = draw.choice(texts)
            try:
                about[key] = json.dumps(_changed(json.loads(about[key]), draw))
            except ValueError:  # it is no JSON any more
                about[key] += "]"
            if draw.random() < 0.1:
                about[key] = draw.choice(
                    ("", "[" * 100_000, "null", '{"a": 1, "a": 2}', "1" * 9999)
                )
        elif about and draw.random() < 0.1:
            about[draw.choice(list(about))] = draw.choice(("", "-1", "9" * 5000, "nan", "{}"))
        else:
            _spoil(tensors, draw)
    other = path.with_name("hostile.safetensors")
    write_tensors(other, kind, tensors, {k: v for k, v in about.items() if _is_text(v)})
    return other.read_bytes()


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:  # half a character: the format cannot hold it
        return False
    return True


def _spoil(tensors: dict[str, Tensor], draw: random.Random) -> None:
    if not tensors or draw.random() < 0.1:
        tensors[draw.choice(("a", "", "signals/", "counts/x", "history/9/quota"))] = torch.ones(2)
        return
    key = draw.choice(list(tensors))
    value = tensors.pop(key)
    way = draw.randrange(6)
    if way == 1:
        tensors[draw.choice((key.upper(), key + "/0", "signals/a b"))] = value
    elif way == 2:
        kinds = (torch.int8, torch.uint8, torch.bool, torch.float16, torch.float64, torch.int64)
        tensors[key] = value.to(draw.choice((*kinds, torch.complex64, torch.bfloat16)))
    elif way == 3:
        shapes = ((-1,), (0,), (1, -1), (-1, 1), (1, 1, 1, -1), ())
        shape = draw.choice(shapes if value.numel() else ((0,),))
        tensors[key] = value.flatten()[
            : 0 if shape == (0,) else 1 if shape == () else None
        ].reshape(shape)
    elif way == 4:
        ends = (-1, 0, 127, 2**31 - 1, 2**62, -(2**63), float("nan"), float("inf"), 1e30)
        spoiled = value.clone().flatten()
        if len(spoiled):
            number = draw.choice(ends)
            place = draw.randrange(len(spoiled))
            spoiled[place] = torch.tensor(number, dtype=torch.float64).to(value.dtype)
        tensors[key] = spoiled.reshape(value.shape)
    elif way == 5:
        tensors[key] = torch.cat([value, value]) if value.dim() else value


# ---------------------------------------------------------------------------------------- judging


@contextmanager
def limited() -> Iterator[None]:
    """Raises in place of hanging."""

    def late(*_: Any) -> None:
        raise TimeoutError(f"not read within {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def content_of(value: Any) -> Any:
    """The content of a record, to compare it."""
    if isinstance(value, Tensor):
        return (
            str(value.dtype),
            list(value.shape),
            value.contiguous().reshape(-1).view(torch.uint8).tolist(),
        )
    if is_dataclass(value):
        return {f.name: content_of(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, dict):
        return {str(key): content_of(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [content_of(part) for part in value]
    return repr(value)


def judged(read: Read, path: Path, mutation: Mutation, whole: Any) -> str:
    """Returns "same", "refused", "told" (of version 1), "other" for other content under a right checksum, or what is wrong."""
    with warnings.catch_warnings(record=True) as caught, limited():
        warnings.simplefilter("always")
        try:
            found = content_of(read(path))
        except ValueError as error:
            return "refused" if str(path) in str(error) else f"WRONG sentence: {error}"
        except BaseException as error:
            return f"WRONG {type(error).__name__}: {error}"
    if any("has no checksum" in str(warning.message) for warning in caught):
        return "told"
    if caught:
        return f"WRONG warning: {caught[0].message}"
    if found == whole:
        return "same"
    return "other" if mutation.hostile else "WRONG content"
