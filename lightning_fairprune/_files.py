"""Files that are whole or not there, and tensor files that say what they hold."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

__all__ = [
    "RUN_FOLDER",
    "check_format",
    "read_json",
    "read_tensors",
    "write_tensors",
    "write_whole",
]

# Where a run keeps what this library notes of it, inside the folder of its logger.
RUN_FOLDER = "fairprune"


def write_whole(path: str | os.PathLike[str], write: Callable[[Path], object]) -> None:
    """Lets `write` fill a file next to `path` and renames it, so that readers never see half of one.

    Its permissions are those of any new file; if `write` fails, what was at `path` is still there.

    Args:
        path: File to make or to replace.
        write: Called with the temporary path.
    """
    path = Path(path)
    # No file of `tempfile`: it stays readable by its owner alone, also under its final name.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Writes a safetensors file.

    Args:
        path: File to make or to replace.
        tensors: What it holds, by name.
        metadata: Text to go with them; `read_tensors` expects ``format`` and ``version``.
    """
    # Cloned: the format knows no strides and no tensor that shares memory with another.
    whole = {name: tensor.cpu().clone().contiguous() for name, tensor in tensors.items()}
    write_whole(path, lambda temporary: save_file(whole, temporary, dict(metadata)))


def read_tensors(
    path: str | os.PathLike[str], kind: str, version: str
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns tensors and metadata of a safetensors file.

    Args:
        path: File to read.
        kind: What its metadata must name as ``format``.
        version: What they must name as ``version``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, of another kind or of another version.
    """
    name = os.fspath(path)
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no file {name!r}.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            check_format(name, metadata, kind, version)
            return {key: file.get_tensor(key) for key in file.keys()}, metadata  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"{name!r} cannot be loaded: it is no safetensors file or was cut short ({error})."
        ) from error


def read_json(path: Path, kind: str, version: str) -> dict[str, Any]:
    """Returns the content of a JSON file that says what it is.

    Raises:
        ValueError: If it is damaged, of another kind or of another version.
    """
    try:
        content = dict(json.loads(path.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{str(path)!r} cannot be loaded: it is damaged ({error}).") from error
    check_format(str(path), content, kind, version)
    return content


def check_format(name: str, metadata: Mapping[str, object], kind: str, version: str) -> None:
    """Raises a ValueError unless a file says that it is of this kind and version."""
    if metadata.get("format") != kind:
        raise ValueError(
            f"{name!r} cannot be loaded: it must be written by `{kind}.save`, its format is "
            f"{metadata.get('format')!r}."
        )
    if str(metadata.get("version")) != version:
        raise ValueError(
            f"{name!r} cannot be loaded: it has format version {metadata.get('version')}, this "
            f"release reads {version}: upgrade lightning-fairprune or write the file again."
        )
