"""The files of a run, read from the folder of its logger."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lightning_fairprune import representation
from lightning_fairprune._files import RUN_FOLDER
from lightning_fairprune.records.pruning_record import PruningRecord
from lightning_fairprune.records.recall_history import RecallHistory
from lightning_fairprune.records.sparsity_record import SparsityRecord

# Text that Lightning writes next to it; the first that says something names the settings.
TEXTS = ("hparams.yaml", "config.yaml")
Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
RECALLS = ("recalls.safetensors", "recalls.json")


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """One run.

    Args:
        path: its folder.
        history: the recalls of every evaluation.
        record: of data pruning; None without it.
        name: what the user calls its setting; None for no name.
        texts: content of `hparams.yaml` and `config.yaml`, where they exist.
        found_in: the folder that the user named, if it holds more runs than this one.
        similarity: of each layer to that of the dense network; None if they were not compared.
        sparsity: of weight pruning; None without it.
    """

    path: Path
    history: RecallHistory
    record: PruningRecord | None = None
    name: str | None = None
    texts: dict[str, str] = field(default_factory=dict)
    found_in: Path | None = None
    similarity: representation.Similarity | None = None
    sparsity: SparsityRecord | None = None

    @property
    def seed(self) -> int | None:
        """The seed of the run, if it is known."""
        return self.history.seed


def read(arguments: Paths) -> list[Run]:
    """Returns the runs of one ``PATH`` or ``NAME=PATH`` or several, each of a run or of a folder with runs below.

    Raises:
        FileNotFoundError: If there is no such folder, or none with recalls in it.
        ValueError: If a file is damaged.
    """
    runs, seen = [], set()
    for argument in [arguments] if isinstance(arguments, str | os.PathLike) else arguments:
        name, path = _split(os.fspath(argument))
        folders = _folders(path)
        for folder in folders:
            known = (name, folder.resolve())
            if known not in seen:  # given twice, it is still one model
                seen.add(known)
                runs.append(_read(folder, name, path if len(folders) > 1 else None))
    return runs


def natural(text: str) -> list[tuple[int, str]]:
    """Returns a key that sorts ``version_2`` before ``version_10``."""
    parts = re.split(r"(\d+)", text)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def _split(argument: str) -> tuple[str | None, Path]:
    # A folder may have a name like lr=0.1.
    if "=" in argument and not Path(argument).exists():
        name, _, path = argument.partition("=")
        if name.strip() and path:
            return name.strip(), Path(path).expanduser()
    return None, Path(argument).expanduser()


def _folders(path: Path) -> list[Path]:
    if path.is_file() and path.name in RECALLS:
        path = path.parent
    if not path.is_dir():
        raise FileNotFoundError(f"There is no folder {str(path)!r}.")
    if path.name == RUN_FOLDER and _has_recalls(path):
        return [path.parent]
    if _has_recalls(path) or _has_recalls(path / RUN_FOLDER):
        return [path]
    found = {file.parent for name in RECALLS for file in path.rglob(name)}
    homes = {folder.parent if folder.name == RUN_FOLDER else folder for folder in found}
    if not homes:
        raise FileNotFoundError(
            f"There are no recalls in {str(path)!r} or below: train or test with RecallMonitor and a "
            "logger."
        )
    return sorted(homes, key=lambda folder: natural(folder.as_posix()))


def _has_recalls(folder: Path) -> bool:
    return any((folder / name).is_file() for name in RECALLS)


def _read(folder: Path, name: str | None, found_in: Path | None) -> Run:
    pruned = any(
        (place / "pruning.safetensors").is_file() for place in (folder, folder / RUN_FOLDER)
    )
    texts = {
        text: (folder / text).read_text(encoding="utf-8", errors="replace")
        for text in TEXTS
        if (folder / text).is_file()
    }
    record = PruningRecord.load(folder) if pruned else None
    similarity, sparsity = None, None
    with contextlib.suppress(FileNotFoundError):
        similarity = representation.load(folder)
    with contextlib.suppress(FileNotFoundError):
        sparsity = SparsityRecord.load(folder)
    return Run(
        folder, RecallHistory.load(folder), record, name, texts, found_in, similarity, sparsity
    )
