"""What a scoring pass has done so far, on disk."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_fairprune._files import read_tensors, write_tensors

__all__ = ["PassFile", "digest"]

_FORMAT, _VERSION = "lightning_fairprune.score_pass", "1"


def digest(model: nn.Module, *facts: object) -> str:
    """Returns a fingerprint of all weights and buffers, and of what else decides the result."""
    found = hashlib.sha256(repr(facts).encode())
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor):
            found.update(f"{name} {value.dtype} {list(value.shape)}".encode())
            found.update(
                value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            )
    return found.hexdigest()


class PassFile:
    """Values [N, ...] by name, and the batches they come from; of one query model and one rank each.

    Args:
        path: file of the pass; ranks and query models get files next to it.
        part: which of them.
    """

    def __init__(self, path: str | os.PathLike[str], part: str) -> None:
        path = Path(path)
        self.path = path.with_name(f"{path.stem}.{part}{path.suffix or '.safetensors'}")

    def read(self, fingerprint: str) -> tuple[dict[str, Tensor], int]:
        """Returns values and number of batches done; nothing and 0 unless it is of this very pass."""
        if not self.path.is_file():
            return {}, 0
        tensors, metadata = read_tensors(self.path, _FORMAT, _VERSION)
        if metadata["fingerprint"] != fingerprint:
            return {}, 0
        return tensors, int(metadata["batches"])

    def write(self, fingerprint: str, values: Mapping[str, Tensor], batches: int) -> None:
        """Notes that the first `batches` batches are done."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        facts = {"format": _FORMAT, "version": _VERSION, "fingerprint": fingerprint}
        write_tensors(self.path, values, facts | {"batches": str(batches)})
