"""Objects of `lightning.pytorch` and `pytorch_lightning`, recognised without importing the latter.

Both packages have the same class names, so the name and module of a base class identify it.
"""

from __future__ import annotations

from typing import TypeGuard

import lightning.pytorch as pl
from lightning.pytorch.utilities import model_helpers

_PACKAGES = ("lightning.pytorch.", "pytorch_lightning.")


def lightning_class(value: object, name: str) -> type | None:
    """Returns the class of this name in either package that `value` is an instance of, or None."""
    for kind in type(value).__mro__:
        if kind.__name__ == name and kind.__module__.startswith(_PACKAGES):
            return kind
    return None


def is_module(model: object) -> TypeGuard[pl.LightningModule]:
    """Whether a model is a LightningModule of either package."""
    return lightning_class(model, "LightningModule") is not None


def is_overridden(method: str, owner: object) -> bool:
    """Whether the user's module or data module defines this method."""
    parents = ("LightningModule", "LightningDataModule")
    parent = next(filter(None, (lightning_class(owner, name) for name in parents)), None)
    if parent is None:
        return callable(getattr(owner, method, None))
    return model_helpers.is_overridden(method, owner, parent=parent)


def is_strategy(strategy: object, *names: str) -> bool:
    """Whether a strategy is an instance of one of these classes."""
    return any(lightning_class(strategy, name) is not None for name in names)


def shards_weights(strategy: object) -> bool:
    """Whether a strategy shards the weights, so that no process has all of them."""
    return is_strategy(strategy, "FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy")
