"""torchdata: the StatefulDataLoader, which resumes by itself."""

from __future__ import annotations

from typing import Any

import pytest
from compat import harness
from compat.parts import TRAIN, Classifier, Data, Pictures, ids, predict

pytest.importorskip("torchdata")

from torchdata.stateful_dataloader import StatefulDataLoader


class Stateful(Data):
    def train_dataloader(self) -> Any:
        return StatefulDataLoader(Pictures(), self.batch_size, shuffle=True)


PROJECTS = [
    harness.Project(
        "StatefulDataLoader", Classifier, lambda: {"datamodule": Stateful()}, ids, TRAIN, predict
    )
]


def test_project(check: Any, runs: harness.Runs) -> None:
    check(runs)
