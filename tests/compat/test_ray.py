"""Ray Train: two workers with RayDDPStrategy."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import Any

import pytest
from compat.parts import TRAIN

pytest.importorskip("ray.train")

import ray
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Any:
    token = tmp_path_factory.mktemp("ray") / "token"  # else Ray leaves one in the home folder
    token.write_text(secrets.token_hex(32))
    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    patch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    path = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    ray.init(
        num_cpus=3,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}},
    )
    yield
    ray.shutdown()
    patch.undo()


@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray", "ignore::FutureWarning:ray")
@pytest.mark.filterwarnings("ignore:.use_push_based_shuffle. is deprecated")
@pytest.mark.usefixtures("cluster")
def test_two_workers(tmp_path: Path) -> None:
    from compat.ray_training import train

    TorchTrainer(
        train,
        train_loop_config={"folder": str(tmp_path)},
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(storage_path=str(tmp_path / "ray"), name="run"),
    ).fit()
    one, two = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    for found in (one, two):
        assert found["monitored"]["weights"] == found["plain"]["weights"] == one["plain"]["weights"]
        assert found["monitored"]["samples"] == found["plain"]["samples"]
        assert found["monitored"]["recall"] == one["monitored"]["recall"] != {}
    assert one["pruned"]["weights"] == two["pruned"]["weights"]
    kept = one["pruned"]["kept"]
    assert kept == two["pruned"]["kept"]
    for epoch in ("1", "2"):
        parts = [rank["pruned"]["samples"][epoch] for rank in (one, two)]
        assert sorted(i for batches in parts for batch in batches for i in batch) == kept[epoch]
        assert len(kept[epoch]) == len(TRAIN) // 2
