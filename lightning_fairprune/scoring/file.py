"""The finished part of a scoring pass, on disk."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from lightning_fairprune._files import read_tensors, understanding, write_tensors

__all__ = ["PassFile", "digest", "text_of"]

_FORMAT = "lightning_fairprune.score_pass"


def digest(model: nn.Module, *facts: object) -> str:
    """Returns a fingerprint of all weights and buffers, and of what else decides the result."""
    found = hashlib.sha256(repr(facts).encode())
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor):
            found.update(f"{name} {value.dtype} {list(value.shape)}".encode())
            found.update(_bytes(value))
    return found.hexdigest()


def text_of(value: Any) -> str:
    """Returns a score, or an argument that it was given, as text that is the same in every process."""
    if isinstance(value, functools.partial):
        given = [*value.args, *value.keywords.items()]
        return f"{text_of(value.func)}({', '.join(map(text_of, given))})"
    if isinstance(value, tuple | list):
        return f"({', '.join(map(text_of, value))})"
    if isinstance(value, Tensor):
        return f"{value.dtype} {list(value.shape)} {hashlib.sha256(_bytes(value)).hexdigest()}"
    name = getattr(value, "__qualname__", None)
    # The default repr of an object has its address.
    return str(name) if name else re.sub(" at 0x[0-9a-fA-F]+", "", repr(value))


def _bytes(value: Tensor) -> bytes:
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


class PassFile:
    """Values [N, ...] by name, and the batches they come from, next to `path`: one file a `part` (query model and rank)."""

    def __init__(self, path: str | os.PathLike[str], part: str) -> None:
        path = Path(path)
        self.path = path.with_name(f"{path.stem}.{part}{path.suffix or '.safetensors'}")

    def read(self, fingerprint: str) -> tuple[dict[str, Tensor], int]:
        """Returns values and number of batches done; nothing and 0 unless it is of this very pass."""
        if not self.path.is_file():
            return {}, 0
        tensors, metadata = read_tensors(self.path, _FORMAT)
        with understanding(self.path):
            if metadata["fingerprint"] != fingerprint:
                return {}, 0
            return tensors, int(metadata["batches"])

    def check(self) -> None:
        """Makes the folder, and raises an OSError unless it is writable."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(self.path.parent, os.W_OK):
            raise PermissionError(f"`resume`: {str(self.path.parent)!r} cannot be written to.")

    def write(self, fingerprint: str, values: Mapping[str, Tensor], batches: int) -> None:
        """Records that the first `batches` batches are done; a full disk does not stop the pass."""
        facts = {"fingerprint": fingerprint, "batches": str(batches)}
        try:
            write_tensors(self.path, _FORMAT, values, facts)
        except (OSError, SafetensorError) as error:
            warnings.warn(
                f"a scoring pass cannot write {str(self.path)!r} and continues without it ({error}): "
                "if it stops, the next pass repeats the work since the last save.",
                stacklevel=2,
            )
