"""A clock that Lightning goes by, and that only the test moves."""

from __future__ import annotations

import importlib
import time
from types import SimpleNamespace


class Clock:
    """The seconds of Lightning's timers, checkpoints and validations by the clock."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def __enter__(self) -> Clock:
        loops = ("fit_loop", "training_epoch_loop", "evaluation_loop")
        names = [f"loops.{name}" for name in loops]
        names += ["callbacks.timer", "callbacks.model_checkpoint"]
        self._modules = [importlib.import_module(f"lightning.pytorch.{name}") for name in names]
        for module in self._modules:
            module.time = SimpleNamespace(**vars(time) | {"monotonic": self.monotonic})
        return self

    def __exit__(self, *_: object) -> None:
        for module in self._modules:
            module.time = time
