"""Points of a training, and ways to break it there."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from lightning_fairprune import _files
from lightning_fairprune._loading import source
from lightning_fairprune._observe import warmup as _warmup
from lightning_fairprune.callbacks._weights import masks as _weight_masks
from lightning_fairprune.scoring import share
from lightning_fairprune.selection import decision


class Broken(RuntimeError):
    """Broken on purpose."""


class Breaker:
    """Breaks one training, once.

    Args:
        fault: ``{"point", "way", "ranks"}``; None breaks nothing.
        rank: of this process.
        folder: where it is noted that the point was reached, so that a worker sees it.
    """

    def __init__(self, fault: dict[str, Any] | None, rank: int, folder: str) -> None:
        here = fault is not None and rank in fault.get("ranks", [0])
        self.point = fault["point"] if fault is not None and here else None
        self.way = fault["way"] if fault is not None else None
        self._armed = Path(folder, f"armed.{rank}")
        self._logger = self._disk = False
        self._pid = os.getpid()

    def at(self, point: str) -> None:
        """Says that training has come to a point."""
        if point == self.point and not self._armed.exists():
            self._armed.touch()
            self._fire()

    def _fire(self) -> None:
        if self.way == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.way == "term":
            os.kill(os.getpid(), signal.SIGTERM)
        elif self.way == "interrupt":
            raise KeyboardInterrupt
        elif self.way == "error":
            raise Broken("broken on purpose")
        elif self.way == "logger":
            self._logger = True
        elif self.way == "disk":
            self._disk = True

    def log(self) -> None:
        """Says that the logger is called."""
        if self._logger:
            self._logger = False
            raise ConnectionError("the logger's server is gone")

    def read(self) -> None:
        """Says that a sample is read, in a worker or not."""
        if self.point is None or self.way not in ("worker", "worker killed"):
            return
        if self._armed.exists():
            if self.way == "worker":
                raise OSError("the sample cannot be read")
            if os.getpid() != self._pid:
                os.kill(os.getpid(), signal.SIGKILL)

    def install(self, trainer: Any) -> None:
        """Puts points where no hook of a user's comes by; a forked child changes nothing but itself."""
        if self.point is None:
            return
        before(decision.Decision, "draw", lambda it: self.at(f"decision {it.draws}"))
        before(source.TrainSource, "train_dataloader", lambda it: self._swap(it))
        before(_weight_masks.MaskedWeights, "set", lambda it: self.at("pruning of weights"))
        self._reduction(trainer)
        self._pass()
        self._whole_files()
        self._checkpoints()

    def _swap(self, it: Any) -> None:
        if it.kept is not None:
            self.at("swap")

    def _reduction(self, trainer: Any) -> None:
        sums, closing = _warmup.sum_over_ranks, []

        def counted(of: Any) -> Callable[[Any], Any]:
            add = sums(of)

            def one(tensor: Any) -> Any:
                if closing:
                    closing.append(0)
                    if len(closing) == 3:  # one is done, others are to come
                        self.at(f"reduction {trainer.current_epoch}")
                return add(tensor)

            return one

        finish = _warmup.WarmUp.finish_epoch

        def finish_epoch(it: Any, epoch: int) -> None:
            closing.append(0)
            finish(it, epoch)
            closing.clear()

        _warmup.sum_over_ranks = counted  # type: ignore[assignment]
        _warmup.WarmUp.finish_epoch = finish_epoch  # type: ignore[method-assign]

    def _pass(self) -> None:
        iterate = share.Share.iterate

        def broken(it: Any, done: int) -> Iterator[Any]:
            for i, batch in enumerate(iterate(it, done)):
                if i == 2:
                    self.at("pass")
                yield batch

        share.Share.iterate = broken  # type: ignore[method-assign]

    def _whole_files(self) -> None:
        class Os:
            def __getattr__(self, name: str) -> Any:
                return getattr(os, name)

            @staticmethod
            def replace(temporary: Path, path: Path) -> None:
                self._file(temporary, path)
                os.replace(temporary, path)

        _files.os = Os()  # type: ignore[assignment]
        whole = _files.save_file

        def save_file(tensors: Any, path: Path, metadata: Any) -> None:
            if self.way == "disk" and self._is(path, "half") and not self._armed.exists():
                self._armed.touch()
                with full_disk(200):
                    whole(tensors, path, metadata)
            else:
                whole(tensors, path, metadata)

        _files.save_file = save_file

    def _is(self, temporary: Path, when: str) -> bool:
        return (
            self.point is not None
            and self.point == f"{when} {temporary.name[1:].rsplit('.', 2)[0]}"
        )

    def _file(self, temporary: Path, path: Path) -> None:
        name = path.name.split(".rank")[0]
        self.at(f"before rename {name}")
        if self.point == f"half {name}" and self.way != "disk":
            os.truncate(temporary, os.path.getsize(temporary) // 2)
            self.at(f"half {name}")

    def _checkpoints(self) -> None:
        save = TorchCheckpointIO.save_checkpoint

        def save_checkpoint(it: Any, checkpoint: Any, path: Any, **more: Any) -> None:
            if self._disk:
                self._disk = False
                with full_disk(4096):
                    save(it, checkpoint, path, **more)
            elif (
                self.point == f"half checkpoint {checkpoint['epoch']}"
                and Path(path).name.startswith("last")
                and not self._armed.exists()
            ):
                # What a copy between file systems leaves when it is killed.
                save(it, checkpoint, path, **more)
                os.truncate(path, os.path.getsize(path) // 2)
                self.at(self.point)
            else:
                save(it, checkpoint, path, **more)

        TorchCheckpointIO.save_checkpoint = save_checkpoint  # type: ignore[method-assign]


class full_disk:
    """No file of this process can grow beyond some bytes: the system refuses the write halfway."""

    def __init__(self, most: int) -> None:
        self._most = most

    def __enter__(self) -> None:
        self._before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self._most, self._before[1]))

    def __exit__(self, *_: object) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self._before)


def before(owner: Any, name: str, do: Callable[[Any], None]) -> None:
    """Calls `do` before a method."""
    method = getattr(owner, name)

    def wrapped(it: Any, *args: Any, **kwargs: Any) -> Any:
        do(it)
        return method(it, *args, **kwargs)

    setattr(owner, name, wrapped)
