"""A part of the table of faults: what is resumed is what would have been, or it is said what is not."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from faults.harness import Cell, Faults, Zygote

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="trainings are forked")


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faults]:
    zygote = Zygote()
    yield Faults(zygote, tmp_path_factory.mktemp("faults"))
    zygote.close()


IDENTICAL = [
    # In the warm-up.
    Cell("step 0.0", "kill"),
    Cell("step 1.5", "kill", "2 workers"),
    Cell("step 1.5", "worker", "2 workers"),
    Cell("step 1.5", "worker killed", "2 workers"),
    Cell("step 1.5", "error", policy="epoch"),
    Cell("step 1.5", "disk"),
    # Around the decision.
    Cell("validation 1.1", "kill", policy="epoch"),
    Cell("reduction 1", "kill", "2 ranks", "epoch", ranks=(1,)),
    Cell("decision 0", "kill", policy="epoch", prune="restart"),
    Cell("swap", "term", "2 workers"),
    Cell("step 2.2", "kill", prune="restart"),
    Cell("decision 0", "error", policy="exception"),
    # At the start of an epoch, where the Trainer still counts the batches of the one before.
    Cell("epoch 2", "error", policy="exception", prune="restart"),
    Cell("epoch 3", "error", policy="exception"),
    # In pruned epochs.
    Cell("step 2.2", "kill", "2 ranks", ranks=(1,)),
    Cell("step 2.2", "term", "2 ranks", ranks=(0, 1)),
    Cell("after step 2.4", "logger", policy="epoch"),
    # In a pass, and in files.
    Cell("pass", "kill", policy="epoch", prune="pass"),
    Cell("half pruning.safetensors", "kill", policy="epoch"),
    Cell("half dynamics.safetensors", "disk", policy="epoch"),
]


@pytest.mark.parametrize("cell", IDENTICAL, ids=str)
def test_resumes_to_the_last_bit(cell: Cell, faults: Faults) -> None:
    found = faults(cell)
    assert found.verdict == "identical", found


DETECTED = {
    Cell(
        "validation 1.1", "term", policy="exception"
    ): "the checkpoint was taken on the last batch",
    Cell("validation 1.1", "error", policy="exception"): "the checkpoint was taken inside the val",
    Cell("validation 1.1", "kill"): "the checkpoint was taken on the last batch of epoch 1",
    Cell("half checkpoint 1", "kill", policy="epoch"): "",
}


@pytest.mark.parametrize("cell", DETECTED, ids=str)
def test_says_what_is_missing(cell: Cell, faults: Faults) -> None:
    found = faults(cell)
    assert found.verdict == "detected", found
    assert found.words.startswith(DETECTED[cell])
