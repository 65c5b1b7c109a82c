"""Files of the library that are damaged, of another kind, or something else altogether."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import lightning_fairprune as lfp
from bad_inputs import Bad
from bad_inputs.checkpoints import Payload
from lightning_fairprune import representation
from lightning_fairprune._files import write_json
from lightning_fairprune.history import Evaluation
from lightning_fairprune.records.sparsity_record import PruneStep

TARGET = torch.tensor([0, 1, 0, 1, 2, 2])
COUNTS = lfp.ClassCounts(torch.tensor([9, 3]), torch.tensor([10, 5]))


def dynamics(path: Path) -> None:
    lfp.Dynamics(TARGET, {"loss": torch.rand(2, 6)}).save(path)


def selection(path: Path) -> None:
    lfp.select(TARGET, [1, 1, 1]).save(path)


def parquet(path: Path) -> None:
    lfp.select(TARGET, [1, 1, 1]).to_parquet(path)


def pruning(path: Path) -> None:
    lfp.PruningRecord(lfp.select(TARGET, [1, 1, 1]), TARGET).save(path.parent)


def recalls(path: Path) -> None:
    lfp.RecallHistory((Evaluation("val", 1, 100, False, COUNTS),), ("cat", "dog")).save(path.parent)


def sparsity(path: Path) -> None:
    step = PruneStep(2, 100, 0.5, 0.5, {"fc": 0.5})
    lfp.SparsityRecord({}, (step,)).save(path.parent)


def similarity(path: Path) -> None:
    representation.save(path, {"conv": 0.9})


Step = Callable[[Path], object]
KINDS: dict[str, tuple[str, Step, Callable[[Path], Any]]] = {
    "dynamics": ("dynamics.safetensors", dynamics, lfp.Dynamics.load),
    "selection": ("kept.safetensors", selection, lfp.Selection.load),
    "selection as Parquet": (
        "kept.parquet",
        parquet,
        lambda path: lfp.Selection.from_parquet(path, TARGET),
    ),
    "pruning record": ("pruning.safetensors", pruning, lfp.PruningRecord.load),
    "recalls": ("recalls.safetensors", recalls, lfp.RecallHistory.load),
    "recalls as JSON": ("recalls.json", recalls, lfp.RecallHistory.load),
    "sparsity": ("sparsity.json", sparsity, lfp.SparsityRecord.load),
    "similarity": ("similarity.json", similarity, representation.load),
}


def kept(change: Callable[[bytes], bytes]) -> Callable[[Path, Step], None]:
    def write(path: Path, save: Step) -> None:
        save(path)
        path.write_bytes(change(path.read_bytes()))

    return write


def flip_last(whole: bytes) -> bytes:
    return whole[:-1] + bytes([whole[-1] ^ 1])


def overlapping(whole: bytes) -> bytes:
    """Two tensors at the same place."""
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    places = [entry for name, entry in header.items() if name != "__metadata__"]
    for entry in places:
        entry["data_offsets"] = places[0]["data_offsets"]
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + whole[8 + length :]


def newer(path: Path, save: Step) -> None:
    save(path)
    if path.suffix == ".json":
        path.write_text(json.dumps(json.loads(path.read_text()) | {"version": "9"}))
        return
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file(load_file(path), path, metadata | {"version": "9"})


def disguised(path: Path, save: Step) -> None:
    path.write_bytes(pickle.dumps(Payload(path.parent)))


FORMS: dict[str, Callable[[Path, Step], object]] = {
    "that is not there": lambda path, save: None,
    "that is a folder": lambda path, save: path.mkdir(),
    "that is empty": lambda path, save: path.touch(),
    "that was cut short": kept(lambda whole: whole[: len(whole) // 2]),
    "that is a pickle": disguised,
    "that is other text": lambda path, save: path.write_text("<html>404</html>"),
}
BINARY: dict[str, Callable[[Path, Step], object]] = {
    "with a flipped bit": kept(flip_last),
    "with a header of 2**62 bytes": kept(lambda whole: (2**62).to_bytes(8, "little") + whole[8:]),
    "with overlapping tensors": kept(overlapping),
    "of a later release": newer,
    "of another tool": lambda path, save: save_file({"weight": torch.ones(2)}, path),
}
TEXT: dict[str, Callable[[Path, Step], object]] = {
    "of a later release": newer,
    "of another tool": lambda path, save: path.write_text('{"a": 1}'),
    "nested ten thousand deep": lambda path, save: path.write_text("[" * 10_000),
    "that is no UTF-8": lambda path, save: path.write_bytes(b'{"format": "\xff"}'),
}
AGAIN = "copy or write it again"
SENTENCES = {
    "that is not there": ("There (is|are) no", "file|recalls|sparsity", ""),
    "that is a folder": ("There (is|are) no", "file|recalls|sparsity", ""),
    "with a flipped bit": ("cannot be loaded", "does not have the checksum", AGAIN),
    "of a later release": (
        "this release reads 1 and 2",
        "it has format version 9",
        "upgrade lightning-fairprune",
    ),
    "of another tool": ("must be written by `", "its format is None", "give a file of that kind"),
}
UNREADABLE = ("cannot be loaded|is not a Parquet file", "it is damaged|it is truncated", AGAIN)


def rows_of(kind: str) -> list[Bad]:
    name, save, load = KINDS[kind]
    forms = FORMS | {".safetensors": BINARY, ".json": TEXT}.get(Path(name).suffix, {})

    def row(form: str, write: Callable[[Path, Step], object]) -> Bad:
        missing = form in ("that is not there", "that is a folder")
        return Bad(
            f"{kind} {form}",
            lambda at: load(at / name),
            FileNotFoundError if missing else ValueError,
            *SENTENCES.get(form, UNREADABLE),
            given=lambda at: write(at / name, save),
        )

    return [row(form, write) for form, write in forms.items()]


def edited(change: dict[str, Any]) -> Callable[[Path], None]:
    """recalls.json in which somebody changed the last evaluation."""

    def write(at: Path) -> None:
        recalls(at / "recalls.json")
        (at / "recalls.safetensors").unlink()
        content = json.loads((at / "recalls.json").read_text())
        content["last"]["val"] |= change
        del content["version"], content["checksum"]
        write_json(at / "recalls.json", content.pop("format"), content)

    return write


def read_recalls(at: Path) -> None:
    lfp.RecallHistory.load(at)


def fifo(at: Path) -> None:
    os.mkfifo(at / "kept.safetensors")


# fmt: off
ROWS = [
    *(row for kind in KINDS for row in rows_of(kind)),
    Bad("recalls with NaN counts", read_recalls, ValueError, "it is damaged", "too many dimensions 'str'", AGAIN, given=edited({"tp": [float("nan"), 3]})),
    Bad("recalls with more hits than samples", read_recalls, ValueError, "`tp` must be between 0 and `support`", "got 90 of 10 for class 0", AGAIN, given=edited({"tp": [90, 3]})),
    Bad("recalls with counts beyond 64 bits", read_recalls, ValueError, "it is damaged", "(?i)overflow", AGAIN, given=edited({"tp": [2**70, 3]})),
    Bad("recalls with fewer names than classes", read_recalls, ValueError, "must name each of the 1 classes", "got 2", AGAIN, given=edited({"tp": [9], "support": [10]})),
    Bad("selection that is a pipe", lambda at: lfp.Selection.load(at / "kept.safetensors"), FileNotFoundError, "There is no file", "kept.safetensors", given=fifo),
    Bad("selection of other samples as Parquet", lambda at: lfp.Selection.from_parquet(at / "a.parquet", TARGET[:5]), ValueError, "was made from 6 samples", "`target` has 5", "pass the labels of the same training set", given=lambda at: parquet(at / "a.parquet")),
    Bad("save to a folder that is a file", lambda at: selection(at / "a" / "kept.safetensors"), OSError, "cannot be written", "is not a folder", "make the folder first", given=lambda at: (at / "a").touch()),
    Bad("save in place of a folder", lambda at: selection(at / "kept.safetensors"), OSError, "kept.safetensors", "is a folder", "give the name of a file in it", given=lambda at: (at / "kept.safetensors").mkdir()),
    Bad("similarity out of range", lambda at: representation.save(at, {"conv": 1.7}), ValueError, "`layers` must have values in", "got 1.7 of 'conv'"),
]
# fmt: on
