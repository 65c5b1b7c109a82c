"""A part of the settings of `replay`: with the callback and without it training is the same, or it is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults.design import FACTORS, Setting, excluded, settings
from faults.fits import fit
from faults.replay import difference, replay, together, words
from lightning.pytorch import callbacks

pytestmark = pytest.mark.skipif(
    not hasattr(callbacks, "EMAWeightAveraging"), reason="this Lightning averages in other ways"
)

SETTINGS = settings(200)
ALONE = [it for it in SETTINGS[:70] if it["strategy"] == "one"][::3]
TOGETHER = [it for it in SETTINGS[:70] if it["strategy"] == "ddp"][::4]


def test_all_pairs_of_levels_occur() -> None:
    pairs = {(a, b) for it in SETTINGS for a in it.items() for b in it.items()}
    levels = [(name, level) for name, found in FACTORS.items() for level in found]
    for a in levels:
        for b in levels:
            assert a[0] == b[0] or excluded(a, b) or (a, b) in pairs


@pytest.mark.parametrize("setting", ALONE, ids=range(len(ALONE)))
def test_training_is_what_the_same_batches_make_of_it(setting: Setting, tmp_path: Path) -> None:
    found = replay(setting, tmp_path)
    assert found.verdict != "FAILED", found.words


def test_training_on_two_ranks_is_what_the_same_batches_make_of_it(tmp_path: Path) -> None:
    for setting, found in zip(TOGETHER, together(TOGETHER, tmp_path / "ddp"), strict=True):
        assert found.verdict != "FAILED", (words(setting), found.words)


def test_the_replay_sees_what_differs(tmp_path: Path) -> None:
    setting = {name: levels[0] for name, levels in FACTORS.items()}
    pruned = fit(setting, tmp_path / "pruned")
    assert pruned.error is None
    epoch = pruned.diary.epochs[-1]
    epoch.batches[0].reverse()  # the same samples, in another order of summation
    again = fit(setting, tmp_path / "again", pruned.diary)
    assert "weights" in difference(pruned.final, again.final)
