"""Atomic writes, and tensor and JSON files that name their format and version."""

from __future__ import annotations

import json
import os
import secrets
import stat
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

# The folder for the files of this library, inside the folder of a run's logger.
RUN_FOLDER = "fairprune"

_SUM = "checksum"  # in the metadata; older files and those of other programs have none
_AGAIN = "copy or write it again"


def write_whole(path: str | os.PathLike[str], write: Callable[[Path], object]) -> None:
    """Calls `write` with a temporary path in the same folder and renames the file, so that readers never see a part.

    The file is private to its owner until then, and has the permissions of any new file afterwards; if `write`
    fails, an old file at `path` stays.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{str(path)!r} is a folder: give the name of a file in it.")
    if not path.parent.is_dir():
        what = "is not a folder" if path.parent.exists() else "does not exist"
        raise NotADirectoryError(
            f"{str(path)!r} cannot be written: {str(path.parent)!r} {what}; make the folder first."
        )
    # In a shared folder: a name that cannot be guessed, and a new file that is no link of another user.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0)
    opened = os.open(temporary, flags, 0o666)
    mode = stat.S_IMODE(os.fstat(opened).st_mode)  # the only way to read the umask is to set it
    os.close(opened)
    try:
        os.chmod(temporary, 0o600)
        write(temporary)
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Writes a safetensors file; `read_tensors` expects ``format`` and ``version`` in its metadata."""
    # Cloned: the format has neither strides nor tensors that share memory.
    whole = {name: tensor.cpu().clone().contiguous() for name, tensor in tensors.items()}
    about = {**metadata, _SUM: _checksum(whole, metadata)}
    write_whole(path, lambda temporary: save_file(whole, temporary, about))


def read_tensors(
    path: str | os.PathLike[str], kind: str, version: str
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns tensors and metadata of a safetensors file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, or its metadata has another ``format`` than `kind` or another ``version``.
    """
    name = os.fspath(path)
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"There is no file {name!r}" + (": it is a folder." if Path(path).is_dir() else ".")
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            check_format(name, metadata, kind, version)
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"{name!r} cannot be loaded: it is not a safetensors file, or it is truncated ({error}); "
            f"{_AGAIN}."
        ) from error
    expected = metadata.pop(_SUM, None)
    if expected is not None and expected != _checksum(tensors, metadata):
        raise ValueError(
            f"{name!r} cannot be loaded: it is damaged (its content does not have the checksum that "
            f"it was written with); {_AGAIN}."
        )
    return tensors, metadata


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Returns the CRC-32 of the whole content: an index with a flipped bit may still be a valid index."""
    found = zlib.crc32(json.dumps(sorted(metadata.items())).encode())
    for name, tensor in sorted(tensors.items()):
        found = zlib.crc32(f"{name} {tensor.dtype} {list(tensor.shape)}".encode(), found)
        found = zlib.crc32(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data, found)
    return f"{found:08x}"


def run_file(path: Path, names: Sequence[str]) -> Path | None:
    """Returns the first of these files in a folder, or in the folder of this library inside it."""
    places = (folder / name for folder in (path, path / RUN_FOLDER) for name in names)
    return next((place for place in places if place.is_file()), None)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file for readers of text, too."""
    text = json.dumps(content, indent=1) + "\n"
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_json(path: Path, kind: str, version: str) -> dict[str, Any]:
    """Returns the content of a JSON file that names its format and version.

    Raises:
        ValueError: If it is damaged, of another kind or of another version.
    """
    with understanding(path):
        content = dict(json.loads(path.read_text(encoding="utf-8")))
    check_format(str(path), content, kind, version)
    return content


@contextmanager
def understanding(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns errors from parsing the content of a file into a ValueError that says which file is damaged."""
    wrong = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
    try:
        yield
    except (StopIteration, *wrong) as error:
        # The text of a KeyError is only the key, that of a UnicodeError contains the whole file.
        why = str(error) if isinstance(error, ValueError) else repr(error)
        if isinstance(error, StopIteration):
            why = "it has fewer entries than its header states"
        why = why.rstrip(".")[:400]
        raise ValueError(
            f"{os.fspath(path)!r} cannot be loaded: it is damaged ({why}); {_AGAIN}."
        ) from error


def read_checkpoint(path: Path) -> Any:
    """Returns what `torch.save` wrote, on the CPU, if it is only tensors and primitives.

    Raises:
        ValueError: If it is anything else, or damaged; its message has no full stop.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on the part before the damage
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged pickle may raise anything
            # Only the first sentence: the next ones explain how to run the code in the file.
            why = (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0]
            raise ValueError(
                f"{str(path)!r} must load with weights_only=True, as tensors and primitives do, but "
                f"it is damaged or holds something else ({why.rstrip('.')[:200]})"
            ) from error


def check_format(name: str, metadata: Mapping[str, object], kind: str, version: str) -> None:
    """Raises a ValueError unless the metadata of a file name this format and version."""
    if metadata.get("format") != kind:
        raise ValueError(
            f"{name!r} cannot be loaded: it must be written by `{kind.rpartition('.')[2]}.save`, its "
            f"format is {metadata.get('format')!r}; give a file of that kind."
        )
    if str(metadata.get("version")) != version:
        raise ValueError(
            f"{name!r} cannot be loaded: it has format version {metadata.get('version')}, this "
            f"release reads {version}: upgrade lightning-fairprune or write the file again."
        )


def pack_bits(values: Tensor) -> Tensor:
    """Return booleans [..., N] as uint8 [..., ceil(N / 8)] on the CPU, bit i of byte j being value 8 j + i.

    Example:
        >>> pack_bits(torch.tensor([True, False, True]))  # 1 + 4
        tensor([5], dtype=torch.uint8)
    """
    if values.dtype != torch.bool:
        raise TypeError(f"`values` must be bool, got {values.dtype}.")
    packed = np.packbits(values.detach().cpu().numpy(), axis=-1, bitorder="little")
    return torch.from_numpy(packed).contiguous()


def unpack_bits(packed: Tensor, n: int) -> Tensor:
    """Return the booleans [..., n], on the CPU, that `pack_bits` packed.

    Example:
        >>> unpack_bits(torch.tensor([5], dtype=torch.uint8), 3)
        tensor([ True, False,  True])
    """
    if packed.dtype != torch.uint8:
        raise TypeError(f"`packed` must be uint8, got {packed.dtype}.")
    num_bytes = -(-n // 8)
    if packed.shape[-1:] != (num_bytes,):
        raise ValueError(
            f"`packed` must have {num_bytes} bytes a row for {n} bits, got shape {list(packed.shape)}."
        )
    bits = np.unpackbits(packed.cpu().numpy(), axis=-1, count=n, bitorder="little")
    return torch.from_numpy(bits.view(np.bool_)).contiguous()
