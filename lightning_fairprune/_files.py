"""Files that are whole or not there."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

__all__ = ["write_whole"]


def write_whole(path: str | os.PathLike[str], write: Callable[[Path], object]) -> None:
    """Lets `write` fill a file next to `path` and renames it, so that readers never see half of one.

    Its permissions are those of any new file; if `write` fails, what was at `path` is still there.

    Args:
        path: File to make or to replace.
        write: Called with the temporary path.
    """
    path = Path(path)
    # No file of `tempfile`: it stays readable by its owner alone, also under its final name.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
