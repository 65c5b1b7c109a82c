"""Runs every test from the same random state, and properties on the number of examples that was asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

# A step of the library may compile or read a file: time says nothing about whether a property holds.
_SLOW = [HealthCheck.too_slow]
settings.register_profile(
    "quick", max_examples=25, derandomize=True, deadline=None, suppress_health_check=_SLOW
)
settings.register_profile(
    "nightly", max_examples=2000, deadline=None, print_blob=True, suppress_health_check=_SLOW
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    torch.manual_seed(0)
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):  # of a test before, whichever that was
        os.environ.pop(name, None)
    yield
    # A function mode that is left behind would look into every later test.
    assert torch._C._len_torch_function_stack() == 0
