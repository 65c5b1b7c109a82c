"""Runs, read from the folders of their loggers."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lightning_fairprune import representation
from lightning_fairprune._files import RUN_FOLDER, run_file
from lightning_fairprune.records.offsets_record import OffsetsRecord
from lightning_fairprune.records.pruning_record import PruningRecord
from lightning_fairprune.records.recall_history import FILES, RecallHistory, printable
from lightning_fairprune.records.sparsity_record import SparsityRecord

# Files of Lightning; the first that differs between settings names them.
TEXTS = ("hparams.yaml", "config.yaml")
Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """One run.

    Args:
        path: its folder.
        history: the recalls of every evaluation.
        record: of data pruning; None without it.
        name: the user's name of its setting, or None.
        texts: content of `hparams.yaml` and `config.yaml`, if they exist.
        found_in: the folder that the user gave, if it contains several runs.
        similarity: of each layer to that of the dense network, if they were compared.
        sparsity: of weight pruning; None without it.
        offsets: of the logits, and what they are worth; None without them.
    """

    path: Path
    history: RecallHistory
    record: PruningRecord | None = None
    name: str | None = None
    texts: dict[str, str] = field(default_factory=dict)
    found_in: Path | None = None
    similarity: representation.Similarity | None = None
    sparsity: SparsityRecord | None = None
    offsets: OffsetsRecord | None = None

    @property
    def seed(self) -> int | None:
        """The seed of the run, or None."""
        return self.history.seed

    @property
    def trainings(self) -> dict[str, str]:
        """What is of which training, by the name of the training."""
        named = {
            "recalls": self.history,
            "data pruning": self.record,
            "weight pruning": self.sparsity,
            "offsets": self.offsets,
        }
        found: dict[str, str] = {}
        for what, record in named.items():
            name = None if record is None else record.training
            if name is not None:
                name = printable(name)
                found[name] = f"{found[name]}, {what}" if name in found else what
        return found


def read(arguments: Paths) -> list[Run]:
    """Returns the runs of ``PATH`` or ``NAME=PATH``, or of several, each a run or a folder that contains runs."""
    runs, seen = [], set()
    for argument in [arguments] if isinstance(arguments, str | os.PathLike) else arguments:
        name, path = _split(os.fspath(argument))
        folders = _folders(path)
        for folder in folders:
            known = (name, folder.resolve())
            if known not in seen:  # a model given twice counts once
                seen.add(known)
                runs.append(_read(folder, name, path if len(folders) > 1 else None))
    return runs


def natural(text: str) -> list[tuple[int, str]]:
    """Returns a key that sorts ``version_2`` before ``version_10``."""
    parts = re.split(r"(\d+)", text)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def _split(argument: str) -> tuple[str | None, Path]:
    # A folder may be called lr=0.1.
    if "=" in argument and not Path(argument).exists():
        name, _, path = argument.partition("=")
        if name.strip() and path:
            return name.strip(), Path(path).expanduser()
    return None, Path(argument).expanduser()


def _folders(path: Path) -> list[Path]:
    if path.is_file() and path.name in FILES:
        path = path.parent
    if not path.is_dir():
        raise FileNotFoundError(f"There is no folder {str(path)!r}.")
    if path.name == RUN_FOLDER and any((path / name).is_file() for name in FILES):
        return [path.parent]
    if run_file(path, FILES):
        return [path]
    found = {file.parent for name in FILES for file in path.rglob(name)}
    homes = {folder.parent if folder.name == RUN_FOLDER else folder for folder in found}
    if not homes:
        raise FileNotFoundError(
            f"There are no recalls in {str(path)!r} or below: train or test with RecallMonitor and a "
            "logger."
        )
    return sorted(homes, key=lambda folder: natural(folder.as_posix()))


def _read(folder: Path, name: str | None, found_in: Path | None) -> Run:
    texts = {
        text: (folder / text).read_text(encoding="utf-8", errors="replace")
        for text in TEXTS
        if (folder / text).is_file()
    }
    pruned = run_file(folder, ["pruning.safetensors"])
    record = PruningRecord.load(folder) if pruned else None
    similarity, sparsity, offsets = None, None, None
    with contextlib.suppress(FileNotFoundError):
        similarity = representation.load(folder)
    with contextlib.suppress(FileNotFoundError):
        sparsity = SparsityRecord.load(folder)
    with contextlib.suppress(FileNotFoundError):
        offsets = OffsetsRecord.load(folder)
    history = RecallHistory.load(folder)
    return Run(folder, history, record, name, texts, found_in, similarity, sparsity, offsets)
