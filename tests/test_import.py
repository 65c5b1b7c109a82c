"""What `import lightning_fairprune` brings in, and how long it takes next to Lightning's own import."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# Lightning and torchmetrics may bring some of them in, where they are installed; this package does not.
HEAVY = (
    "PIL",
    "duckdb",
    "matplotlib",
    "pandas",
    "pyarrow",
    "scipy",
    "sklearn",
    "tensorboard",
    "torchvision",
)

CODE = """
import json, sys, time
begin = time.process_time()
import lightning.pytorch
theirs = time.process_time()
before = set(sys.modules)
import lightning_fairprune as lfp
for name in lfp.__all__:
    getattr(lfp, name)
ours = time.process_time()
print(json.dumps([sorted(set(sys.modules) - before), theirs - begin, ours - theirs]))
"""


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Any:
    # Both packages as bytecode, or both as source: without a cache nobody writes one.
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    out = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CODE],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
        cwd=tmp_path_factory.mktemp("elsewhere"),
    )
    return json.loads(out.stdout)


def test_heavy_packages_wait_until_they_are_used(fresh: Any) -> None:
    brought = {name.split(".")[0] for name in fresh[0]}
    assert not brought & set(HEAVY)


def test_nothing_comes_that_lightning_has_not_brought(fresh: Any) -> None:
    brought = {name.split(".")[0] for name in fresh[0]} - sys.stdlib_module_names
    assert brought <= {"lightning_fairprune", "safetensors", "rich"}


def test_parts_that_few_need_wait_too(fresh: Any) -> None:
    ours = {name.split(".")[1] for name in fresh[0] if name.startswith("lightning_fairprune.")}
    assert not ours & {"cli", "demo", "experiments", "figures", "report", "table", "thumbnails"}


def test_import_takes_a_small_part_of_lightnings(fresh: Any) -> None:
    _, theirs, ours = fresh
    # About 2 % as bytecode; as source, which some machines never compile, ours weighs more.
    assert ours < 0.25 * theirs
