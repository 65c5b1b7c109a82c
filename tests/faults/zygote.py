"""A process that has imported everything once and forks a child for each training.

Reads one request a line, ``{"id", "ranks": [task, ...], "meeting", "timeout"}``, and answers when all
its ranks have ended. Nothing is trained here: a fork after autograd or a loader has run is not safe.
"""

from __future__ import annotations

import contextlib
import gc
import json
import multiprocessing
import os
import select
import signal
import sys
import time
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Run:
    """The ranks of one training."""

    id: int
    ends: float
    began: float = field(default_factory=time.monotonic)
    alive: dict[int, int] = field(default_factory=dict)
    status: dict[int, int] = field(default_factory=dict)
    seconds: dict[int, float] = field(default_factory=dict)
    hung: list[int] = field(default_factory=list)
    groups: list[int] = field(default_factory=list)

    def poll(self) -> bool:
        """Collects the ranks that have ended; kills those that take too long."""
        now = time.monotonic()
        for pid, rank in list(self.alive.items()):
            if now > self.ends and rank not in self.hung:
                self.hung.append(rank)
                os.kill(pid, signal.SIGKILL)
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                del self.alive[pid]
                self.status[rank] = os.waitstatus_to_exitcode(status)
                self.seconds[rank] = now - self.began
        return not self.alive

    def answer(self) -> str:
        for group in self.groups:  # workers that outlive a killed process
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        ranks = range(len(self.status))
        return json.dumps(
            {
                "id": self.id,
                "status": [self.status[rank] for rank in ranks],
                "seconds": [self.seconds[rank] for rank in ranks],
                "hung": self.hung,
            }
        )


def begin(request: dict[str, Any]) -> Run:
    from faults import training

    run = Run(request["id"], time.monotonic() + request["timeout"])
    tasks = request["ranks"]
    for rank, task in enumerate(tasks):
        pid = os.fork()
        if pid == 0:
            os.setsid()
            if len(tasks) > 1:
                os.environ |= request["meeting"] | {
                    "WORLD_SIZE": str(len(tasks)),
                    "NODE_RANK": "0",
                    "LOCAL_RANK": str(rank),
                }
            training.child(task, rank, len(tasks))  # never returns
        run.alive[pid] = rank
        run.groups.append(pid)
    return run


def main() -> None:
    from faults import training  # noqa: F401 - what all children have in common

    multiprocessing.set_start_method("fork")

    gc.collect()
    gc.freeze()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    runs: list[Run] = []
    pending = b""
    while True:
        readable, _, _ = select.select([0], [], [], 0.005 if runs else None)
        if readable:
            data = os.read(0, 1 << 16)
            if not data:
                for run in runs:
                    run.ends = 0.0
                    run.poll()
                os._exit(0)  # nothing is left to be done, and torch takes long to leave
            *lines, pending = (pending + data).split(b"\n")
            runs += [begin(json.loads(line)) for line in lines]
        for run in [run for run in runs if run.poll()]:
            runs.remove(run)
            sys.stdout.write(run.answer() + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
