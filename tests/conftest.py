"""Runs every test from the same random state."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    torch.manual_seed(0)
    yield
    # A function mode that is left behind would look into every later test.
    assert torch._C._len_torch_function_stack() == 0
