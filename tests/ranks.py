"""Several ranks in one process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

Reduce = Callable[[Tensor], Tensor]


def together(ranks: Sequence[Callable[[Reduce, Reduce], Any]]) -> list[Any]:
    """Runs one function per rank at once; each gets a sum and a maximum over all ranks."""
    barrier = threading.Barrier(len(ranks), timeout=30)
    shared: list[Any] = [None] * len(ranks)

    def run(rank: int) -> Any:
        def gathered(tensor: Tensor) -> Tensor:
            shared[rank] = tensor.clone()
            barrier.wait()
            stacked = torch.stack(list(shared))
            barrier.wait()
            return stacked

        try:
            return ranks[rank](lambda t: gathered(t).sum(0), lambda t: gathered(t).amax(0))
        except Exception:
            barrier.abort()
            raise

    with ThreadPoolExecutor(len(ranks)) as pool:
        return list(pool.map(run, range(len(ranks))))
