"""The checks of the harness notice what they are there for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from compat import harness
from compat.parts import TRAIN, Classifier, Data, ids, predict
from torch import Tensor

RIGHT = harness.Project("right", Classifier, lambda: {"datamodule": Data()}, ids, TRAIN, predict)


class Careless(harness.Runs):
    """Its RecallMonitor draws a random number in every validation."""

    def _monitor(self) -> Any:
        monitor = super()._monitor()
        begin = monitor.on_validation_start

        def on_validation_start(*given: Any) -> None:
            torch.rand(())
            begin(*given)

        monitor.on_validation_start = on_validation_start
        return monitor


class Forgetful(Classifier):
    """Keeps something that a checkpoint does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.steps += 1
        return super().training_step(batch, batch_idx) * (1 + self.steps / 10)


@pytest.mark.parametrize(
    ("project", "check"),
    [
        (
            replace(RIGHT, predict=lambda module, batch: (1 - batch[1].clamp(max=1), batch[1])),
            harness.recalls_are_those_of_the_network,
        ),
        (
            replace(RIGHT, predict=lambda module, batch: (batch[1], batch[1])),
            harness.recalls_are_those_of_the_network,
        ),
        (
            replace(RIGHT, ids=lambda batch: ids(batch).flip(0) % 50),
            harness.selection_is_what_is_trained_on,
        ),
        (replace(RIGHT, labels=TRAIN.flip(0)), harness.selection_is_what_is_trained_on),
        (replace(RIGHT, model=Forgetful), harness.resumes_to_the_last_bit),
    ],
    ids=["predictions", "perfect predictions", "samples", "labels", "resume"],
)
def test_what_is_wrong_is_noticed(project: harness.Project, check: Any, tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        check(harness.Runs(project, tmp_path))


def test_a_random_number_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        harness.monitor_changes_nothing(Careless(RIGHT, tmp_path))


def test_form_of_a_batch() -> None:
    batch = {"x": torch.zeros(2, 3), "y": [torch.zeros(2), "a"], "names": ["a"] * 5}
    assert harness.form(batch) == (
        "dict(x: Tensor(torch.float32, 2), y: list(Tensor(torch.float32, 1), str), "
        "names: list(str, ...))"
    )
