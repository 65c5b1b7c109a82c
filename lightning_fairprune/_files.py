"""Atomic writes, and tensor and JSON files that name their format and version."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import stat
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

# The folder for the files of this library, inside the folder of a run's logger.
RUN_FOLDER = "fairprune"

# Of all files: 2 requires the checksum of the content, which 1 may lack.
VERSION = "2"
_UNVERIFIED = "1"
_SUM = "checksum"
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
    path: str | os.PathLike[str],
    kind: str,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a safetensors file that names its format `kind`, its version and its checksum in the metadata."""
    # Cloned: the format has neither strides nor tensors that share memory.
    whole = {name: tensor.cpu().clone().contiguous() for name, tensor in tensors.items()}
    about = {"format": kind, "version": VERSION, **(metadata or {})}
    about[_SUM] = _checksum(whole, about)
    write_whole(path, lambda temporary: save_file(whole, temporary, about))


def read_tensors(
    path: str | os.PathLike[str], kind: str
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns tensors and metadata of a safetensors file; warns of one of version 1.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, lacks its checksum, or is of another format than `kind` or a later version.
    """
    name = os.fspath(path)
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"There is no file {name!r}" + (": it is a folder." if Path(path).is_dir() else ".")
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            _check_format(name, metadata, kind)
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        _refuse_pointer(Path(path))
        raise ValueError(
            f"{name!r} cannot be loaded: it is not a safetensors file, or it is truncated ({error}); "
            f"{_AGAIN}."
        ) from error
    except (RuntimeError, TypeError, AttributeError, OverflowError) as error:  # of torch
        raise ValueError(
            f"{name!r} cannot be loaded: it is damaged ({_why(error)}); {_AGAIN}."
        ) from error
    expected = metadata.pop(_SUM, None)
    _check_sum(name, metadata, expected, lambda: _checksum(tensors, metadata))
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


def file_of_run(path: Path, name: str, callback: str) -> Path:
    """Returns `path`, or the file `name` in the folder of a run; raises if there is none."""
    if path.is_dir():
        if file := run_file(path, [name]):
            return file
        raise FileNotFoundError(
            f"There is no {name} in {str(path)!r}: train with {callback} and a logger."
        )
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {str(path)!r}.")
    return path


def write_json(path: Path, kind: str, content: Mapping[str, Any]) -> None:
    """Writes `json_text` to a file, whole or not at all."""
    text = json_text(kind, content)
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def json_text(kind: str, content: Mapping[str, Any]) -> str:
    """Returns JSON, for readers of text, too, that names its format `kind`, its version and its checksum."""
    # Through text: keys become strings, tuples lists. JSON has no NaN and no infinity.
    about = json.loads(json.dumps(content), parse_constant=lambda name: name)
    about = {"format": kind, "version": VERSION, **about}
    return json.dumps({**about, _SUM: _json_checksum(about)}, indent=1) + "\n"


def read_json(path: Path, kind: str) -> dict[str, Any]:
    """Returns the content of a JSON file that `write_json` wrote; warns of one of version 1.

    Raises:
        ValueError: If it is damaged, lacks its checksum, or is of another format than `kind` or a later version.
    """
    with understanding(path):
        text = path.read_text(encoding="utf-8")
    return parsed_json(str(path), text, kind)


def parsed_json(name: str, text: str, kind: str) -> dict[str, Any]:
    """Returns the content of `json_text`, from the file `name`; warnings and errors are those of `read_json`."""
    with understanding(name):
        content = json.loads(text, object_pairs_hook=_once)
        if not isinstance(content, dict):
            raise ValueError("it must hold an object")
    _check_format(name, content, kind)
    expected = content.pop(_SUM, None)
    with understanding(name):
        found = _json_checksum(content)
    _check_sum(name, content, expected, lambda: found)
    return content


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("it names a key twice")
    return content


def _json_checksum(content: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(content, sort_keys=True).encode()):08x}"


@contextlib.contextmanager
def understanding(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns errors from parsing the content of a file into a ValueError that says which file is damaged."""
    wrong = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
    try:
        yield
    except (StopIteration, *wrong) as error:
        _refuse_pointer(Path(path))
        raise ValueError(
            f"{os.fspath(path)!r} cannot be loaded: it is damaged ({_why(error)}); {_AGAIN}."
        ) from error


def whole_numbers(name: str, tensor: Tensor) -> Tensor:
    """Returns a stored tensor as int64; raises a ValueError if it holds anything but whole numbers."""
    if tensor.dtype not in (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8):
        raise ValueError(f"`{name}` must hold whole numbers, got {tensor.dtype}")
    return tensor.long()


def whole_number(name: str, value: object) -> int:
    """Returns a stored number; raises a ValueError if it is none or has more than 64 bits."""
    if isinstance(value, bool) or not isinstance(value, int) or not -(2**63) <= value < 2**63:
        raise ValueError(f"`{name}` must be a whole number of 64 bits, got {_short(value)}")
    return value


def text_or_none(about: Mapping[str, object], name: str) -> str | None:
    """Returns a stored text that may be missing; raises a ValueError if it is anything else."""
    value = about.get(name)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"`{name}` must be a text, got {_short(value)}")
    return value


def texts(name: str, value: object) -> tuple[str, ...]:
    """Returns a stored list of texts; raises a ValueError if it is anything else."""
    if not isinstance(value, list | tuple) or not all(isinstance(text, str) for text in value):
        raise ValueError(f"`{name}` must be a list of texts, got {_short(value)}")
    return tuple(value)


def _why(error: Exception) -> str:
    # The text of a KeyError is only the key, that of a UnicodeError contains the whole file.
    why = str(error) if isinstance(error, ValueError) else repr(error)
    if isinstance(error, StopIteration):
        why = "it has fewer entries than its header states"
    return why.rstrip(".")[:400]


def _refuse_pointer(path: Path) -> None:
    """Raises a ValueError if a file is what Git leaves in place of a large file."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        if file.read(40).startswith(b"version https://git-lfs"):
            raise ValueError(
                f"{str(path)!r} cannot be loaded: it is a pointer of Git LFS, not the file itself; "
                "fetch it with `git lfs pull`."
            )


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


def _check_format(name: str, metadata: Mapping[str, object], kind: str) -> None:
    """Raises a ValueError unless the metadata of a file name this format and a version that is known."""
    if metadata.get("format") != kind:
        raise ValueError(
            f"{name!r} cannot be loaded: it must be written by `{kind.rpartition('.')[2]}.save`, its "
            f"format is {_short(metadata.get('format'))}; give a file of that kind."
        )
    version = metadata.get("version")
    if version not in (VERSION, _UNVERIFIED):
        raise ValueError(
            f"{name!r} cannot be loaded: it has format version {_short(version)}, this "
            f"release reads {_UNVERIFIED} and {VERSION}: upgrade lightning-fairprune or write the file again."
        )


def _check_sum(
    name: str, metadata: Mapping[str, object], expected: object, found: Callable[[], str]
) -> None:
    """Raises a ValueError unless a file has the checksum of its content; warns of version 1, which needs none."""
    old = metadata["version"] == _UNVERIFIED
    if expected is None and not old:
        raise ValueError(
            f"{name!r} cannot be loaded: it is damaged or was edited (it must have the checksum of its "
            f"content, and has none); {_AGAIN}."
        )
    if expected is not None and expected != found():
        raise ValueError(
            f"{name!r} cannot be loaded: it is damaged (its content does not have the checksum that "
            f"it was written with); {_AGAIN}."
        )
    if old:
        warn_of_old(name, verified=expected is not None)


def warn_of_old(name: str, *, verified: bool) -> None:
    """Warns of a file of version 1, whose checksum was optional."""
    says = "is intact" if verified else "has no checksum, so damage would not be noticed"
    warnings.warn(
        f"{name!r} has format version 1, of an earlier release, and {says}: load and save it once "
        f"for version {VERSION}.",
        stacklevel=5,
    )


def _short(value: object) -> str:
    text = str(value) if isinstance(value, str) and value.isalnum() else repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


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
