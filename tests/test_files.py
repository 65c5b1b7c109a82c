"""Files appear whole, or the old one stays."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest

from lightning_fairprune._files import write_whole


@pytest.mark.parametrize("kind", [str, Path])
def test_a_file_is_made_or_replaced(tmp_path: Path, kind: type) -> None:
    path = tmp_path / "a.txt"
    for content in ("first", "second"):
        write_whole(kind(path), lambda temporary, content=content: temporary.write_text(content))
        assert path.read_text() == content
        assert os.listdir(tmp_path) == ["a.txt"]


def test_readers_see_the_old_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    seen = []

    def write(temporary: Path) -> None:
        temporary.write_text("half of the n")
        seen.append(path.read_text())
        assert temporary.parent == tmp_path  # renaming is atomic inside one file system only
        temporary.write_text("new")

    write_whole(path, write)
    assert seen == ["old"]
    assert path.read_text() == "new"


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("old", ["old", None])
@pytest.mark.parametrize("half", ["half", None])
def test_a_failure_leaves_the_old_file_and_no_other(
    tmp_path: Path, error: type[BaseException], old: str | None, half: str | None
) -> None:
    path = tmp_path / "a.txt"
    if old is not None:
        path.write_text(old)

    def write(temporary: Path) -> None:
        if half is not None:
            temporary.write_text(half)
        raise error("stopped")

    with pytest.raises(error, match="stopped"):
        write_whole(path, write)
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == (
        {} if old is None else {"a.txt": old}
    )


def test_a_rename_that_fails_leaves_no_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.mkdir()
    with pytest.raises(OSError, match=r"a\.txt"):
        write_whole(path, lambda temporary: temporary.write_text("new"))
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such permissions")
@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_permissions_are_those_of_any_new_file(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        (tmp_path / "any").write_text("new")
        write_whole(tmp_path / "ours", lambda temporary: temporary.write_text("new"))
    finally:
        os.umask(before)
    mode = stat.S_IMODE((tmp_path / "ours").stat().st_mode)
    assert mode == stat.S_IMODE((tmp_path / "any").stat().st_mode) == 0o666 & ~mask
