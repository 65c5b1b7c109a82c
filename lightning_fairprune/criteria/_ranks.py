"""Several processes that score the same model on their own batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def total(tensors: Iterable[Tensor]) -> None:
    """Adds up each tensor over all ranks, in place, to the same bits on all of them."""
    if _several():
        for tensor in tensors:
            dist.all_reduce(tensor)


@contextmanager
def agreed(device: torch.device) -> Iterator[None]:
    """Raises on every rank if one raises inside: the others would wait for it forever."""
    error: Exception | None = None
    try:
        yield
    except Exception as raised:
        error = raised
    if _several():
        failed = torch.tensor(int(error is not None), device=device)
        dist.all_reduce(failed)
        if error is None and failed:
            raise RuntimeError(
                f"{int(failed)} other rank(s) failed while scoring: see their error."
            )
    if error is not None:
        raise error
