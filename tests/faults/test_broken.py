"""Trainings that are broken at random moments and resumed, some with other settings."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from faults.broken import Broken, cells
from faults.harness import Cell, Zygote

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="trainings are forked")


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broken]:
    zygote = Zygote()
    yield Broken(zygote, tmp_path_factory.mktemp("broken"))
    zygote.close()


@pytest.mark.parametrize("cell", list(cells(12, 1)), ids=str)
def test_nothing_is_lost_in_silence(cell: Cell, broken: Broken) -> None:
    found = broken(cell)
    assert found.verdict in ("identical", "whole", "told"), found


OTHERWISE = {
    Cell("after step 1.5", "kill", changed=(("batch", 4),)): "whole",
    Cell("after step 2.1", "interrupt", "2 ranks", ranks=(0, 1), changed=(("ranks", 1),)): "whole",
    Cell("after step 0.3", "term", changed=(("workers", 2),)): "identical",
    Cell("after step 1.5", "error", changed=(("density", 0.5),)): "told",
}


@pytest.mark.parametrize("cell", OTHERWISE, ids=str)
def test_other_settings(cell: Cell, broken: Broken) -> None:
    found = broken(cell)
    assert found.verdict == OTHERWISE[cell], found
