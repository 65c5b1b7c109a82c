"""Several ranks: in one process, or as processes that find each other, leave together and clean up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

Reduce = Callable[[Tensor], Tensor]
RANKS = 2
ROOT = Path(__file__).parents[1]


def together(ranks: Sequence[Callable[[Reduce, Reduce], Any]]) -> list[Any]:
    """Runs one function per rank at once; each gets a sum and a maximum over all ranks."""
    barrier = threading.Barrier(len(ranks), timeout=300)
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


def meeting() -> tuple[dist.TCPStore, dict[str, str]]:
    """Where ranks find each other, and the environment that says so; it ends with the store.

    The store has its port before any rank is told of it. Lightning would look for a free one and open it
    later, when another process may have it.
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    return store, told | {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}


def launch(script: str, settings: Sequence[Any], folder: Path) -> list[list[Any]]:
    """Runs a script that ends with `main` on two ranks.

    Returns:
        For each of the settings what the ranks found.
    """
    given, results = folder / "settings.json", folder / "results"
    given.write_text(json.dumps(settings))
    path = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    store, told = meeting()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", script, str(given), str(results)],
        env=os.environ | told | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    del store
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(Path(f"{results}.{rank}.json").read_text()) for rank in range(RANKS)]
    return [list(records) for records in zip(*found, strict=True)]


def main(run: Callable[..., Any]) -> None:
    """The life of a rank: runs what the settings say, one after the other, and writes down what it found."""
    settings, results = sys.argv[1:]
    found = []
    for setting in json.loads(Path(settings).read_text()):
        found.append(run(**setting))
        dist.barrier()
    Path(f"{results}.{dist.get_rank()}.json").write_text(json.dumps(found))
    dist.barrier()  # when rank 0 has ended all have written
    # Trainers keep their process group, whose threads may outlive Python's shutdown: a thread that then asks
    # for Python's lock is ended inside C++, which aborts the process. Destroying the group ends them in newer
    # versions of torch only. So nothing is shut down: all is written.
    os._exit(0)
