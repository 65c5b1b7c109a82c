"""Locks as files, which several processes and machines see, and which do not outlive their process."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = ["Holder", "acquire", "holder_of", "release"]

# A lock without content is between its creation and its first write, unless its process died there.
_SECONDS_TO_WRITE = 10.0


@dataclass(frozen=True, slots=True)
class Holder:
    """Who works on something.

    Args:
        host: name of the machine.
        pid: process on it.
        identity: tells the process from a later one of the same number; empty where the system cannot.
        since: when it began, seconds since 1970.
    """

    host: str
    pid: int
    identity: str = ""
    since: float = 0.0

    @property
    def is_alive(self) -> bool:
        """Whether it still works, as far as can be told: of other hosts always."""
        if self.host != socket.gethostname():
            return True
        found = _identity(self.pid)
        return found is not None and (not self.identity or not found or found == self.identity)


def acquire(path: Path) -> bool:
    """Takes a lock for this process, if nobody holds it or its holder is dead on this host.

    Args:
        path: file of the lock; its folder must exist.

    Returns:
        Whether this process has it now.
    """
    if _create(path):
        return True
    if not _is_dead(path):
        return False
    with _alone_on_this_host(path.parent):
        # Another process may have found it dead as well and have taken it over meanwhile.
        if _is_dead(path):
            path.unlink(missing_ok=True)
    return _create(path)


def release(path: Path) -> None:
    """Gives a lock back that this process has."""
    path.unlink(missing_ok=True)


def holder_of(path: Path) -> Holder | None:
    """Returns who holds a lock; None if nobody does, or a process of this host that is dead."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        return None
    try:
        holder = Holder(**json.loads(text))
    except (json.JSONDecodeError, TypeError):
        return None if _is_old(path) else Holder("?", 0)
    return holder if holder.is_alive else None


def _create(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return False
    pid = os.getpid()
    holder = Holder(socket.gethostname(), pid, _identity(pid) or "", time.time())
    try:
        os.write(descriptor, json.dumps(asdict(holder)).encode())
    finally:
        os.close(descriptor)
    return True


def _is_dead(path: Path) -> bool:
    return path.exists() and holder_of(path) is None


def _is_old(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > _SECONDS_TO_WRITE
    except FileNotFoundError:
        return False


def _identity(pid: int) -> str | None:
    """Returns what tells a process from all others, "" if the system does not say, None if it is dead."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass  # alive, somebody else's
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
    # After the name in brackets: state is field 3 of proc(5), start time field 22.
    return None if fields[0] in "ZX" else f"{boot}:{fields[19]}"


@contextlib.contextmanager
def _alone_on_this_host(folder: Path) -> Iterator[None]:
    try:
        import fcntl
    except ImportError:  # Windows; two takeovers in the same instant are then possible
        yield
        return
    with open(folder / f".{socket.gethostname()}.takeover", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # ends with the process
        yield
