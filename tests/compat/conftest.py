"""Runs the checks of the harness on the projects of a test file."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from compat.harness import CHECKS, Runs

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
torch.set_num_threads(1)


# Warnings are errors; these are of other packages, or of how the harness runs a project.
FILTERS = [
    "ignore:The dirpath has changed from:UserWarning",
    "ignore:You have overridden `on_after_batch_transfer` in `LightningModule`:UserWarning:lightning",
    "ignore:.set_vital. is deprecated:UserWarning",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            for text in FILTERS:
                item.add_marker(pytest.mark.filterwarnings(text))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "runs" in metafunc.fixturenames:
        projects: list[Any] = metafunc.module.PROJECTS
        names = [project.name for project in projects]
        metafunc.parametrize("runs", projects, ids=names, indirect=True, scope="module")
        metafunc.parametrize("check", CHECKS, ids=[check.__name__ for check in CHECKS])


@pytest.fixture(scope="module")
def runs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Runs]:
    folder: Path = tmp_path_factory.mktemp("runs")
    yield Runs(request.param, folder)
    shutil.rmtree(folder)
