"""Files that are whole or not there, and tensor files that say what they hold."""

from __future__ import annotations

import json
import os
import secrets
import stat
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

__all__ = [
    "RUN_FOLDER",
    "check_format",
    "pack_bits",
    "read_checkpoint",
    "read_json",
    "read_tensors",
    "understanding",
    "unpack_bits",
    "write_tensors",
    "write_whole",
]

# Where a run keeps what this library notes of it, inside the folder of its logger.
RUN_FOLDER = "fairprune"

_SUM = "checksum"  # among the metadata; files of others, and older ones, have none
_AGAIN = "copy or write it again"


def write_whole(path: str | os.PathLike[str], write: Callable[[Path], object]) -> None:
    """Lets `write` fill a file next to `path` and renames it, so that readers never see half of one.

    Its permissions are those of any new file, until then its owner's alone; if `write` fails, what was at
    `path` is still there.

    Args:
        path: File to make or to replace.
        write: Called with the temporary path.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{str(path)!r} is a folder: give the name of a file in it.")
    if not path.parent.is_dir():
        what = "is not a folder" if path.parent.exists() else "does not exist"
        raise NotADirectoryError(
            f"{str(path)!r} cannot be written: {str(path.parent)!r} {what}; make the folder first."
        )
    # A name that nobody can guess, in a folder that others may write to, and a new file, no link of theirs.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0)
    opened = os.open(temporary, flags, 0o666)
    mode = stat.S_IMODE(
        os.fstat(opened).st_mode
    )  # what the umask leaves, which cannot be asked for
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
    """Writes a safetensors file.

    Args:
        path: File to make or to replace.
        tensors: What it holds, by name.
        metadata: Text to go with them; `read_tensors` expects ``format`` and ``version``.
    """
    # Cloned: the format knows no strides and no tensor that shares memory with another.
    whole = {name: tensor.cpu().clone().contiguous() for name, tensor in tensors.items()}
    about = {**metadata, _SUM: _checksum(whole, metadata)}
    write_whole(path, lambda temporary: save_file(whole, temporary, about))


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
    """Returns the CRC-32 of everything in a file: a bit of an index may flip, and it is an index still."""
    found = zlib.crc32(json.dumps(sorted(metadata.items())).encode())
    for name, tensor in sorted(tensors.items()):
        found = zlib.crc32(f"{name} {tensor.dtype} {list(tensor.shape)}".encode(), found)
        found = zlib.crc32(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data, found)
    return f"{found:08x}"


def read_json(path: Path, kind: str, version: str) -> dict[str, Any]:
    """Returns the content of a JSON file that says what it is.

    Raises:
        ValueError: If it is damaged, of another kind or of another version.
    """
    with understanding(path):
        content = dict(json.loads(path.read_text(encoding="utf-8")))
    check_format(str(path), content, kind, version)
    return content


@contextmanager
def understanding(path: str | os.PathLike[str]) -> Iterator[None]:
    """Says of which file it is, and that it is damaged, if its content makes no sense inside."""
    wrong = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
    try:
        yield
    except StopIteration as error:
        raise _damaged(path, "it has fewer entries than its header states") from error
    except wrong as error:
        # A KeyError is no more than the key; a UnicodeError shows all of the file.
        raise _damaged(
            path, str(error) if isinstance(error, ValueError) else repr(error)
        ) from error


def _damaged(path: str | os.PathLike[str], why: str) -> ValueError:
    why = why.rstrip(".")[:400]
    return ValueError(f"{os.fspath(path)!r} cannot be loaded: it is damaged ({why}); {_AGAIN}.")


def read_checkpoint(path: Path) -> Any:
    """Returns what `torch.save` wrote, on the CPU; nothing but tensors and primitives is built.

    Raises:
        ValueError: If there is anything else in it, or it is damaged; a part of a sentence.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about what comes before a damaged place
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # what a damaged pickle raises may be anything
            # Not all of the sentence: torch goes on to say how to run whatever is in the file.
            why = (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0]
            raise ValueError(
                f"{str(path)!r} must load with weights_only=True, as tensors and primitives do, but "
                f"it is damaged or holds something else ({why.rstrip('.')[:200]})"
            ) from error


def check_format(name: str, metadata: Mapping[str, object], kind: str, version: str) -> None:
    """Raises a ValueError unless a file says that it is of this kind and version."""
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
    """Return booleans eight to a byte: value `8 j + i` of the last axis is bit `i` of byte `j`.

    Args:
        values: Booleans, [..., N].

    Returns:
        Bytes on the CPU, uint8, [..., ceil(N / 8)]; the unused bits of the last one are 0.

    Raises:
        TypeError: If `values` is not bool.

    Example:
        >>> pack_bits(torch.tensor([True, False, True]))  # 1 + 4
        tensor([5], dtype=torch.uint8)
    """
    if values.dtype != torch.bool:
        raise TypeError(f"`values` must be bool, got {values.dtype}.")
    packed = np.packbits(values.detach().cpu().numpy(), axis=-1, bitorder="little")
    return torch.from_numpy(packed).contiguous()


def unpack_bits(packed: Tensor, n: int) -> Tensor:
    """Return the `n` booleans per row that `pack_bits` packed.

    Args:
        packed: Bytes, uint8, [..., ceil(n / 8)].
        n: Number of booleans on the last axis.

    Returns:
        Booleans on the CPU, [..., n].

    Raises:
        TypeError: If `packed` is not uint8.
        ValueError: If the last axis of `packed` is not `ceil(n / 8)` long.

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
