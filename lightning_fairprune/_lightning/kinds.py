"""Lightning under both of its names: `lightning.pytorch` and `pytorch_lightning` have a class tree each.

Objects of either are told by the names of the classes that they derive from, so that nothing is imported
that the user does not have.
"""

from __future__ import annotations

from typing import TypeGuard

import lightning.pytorch as pl
from lightning.pytorch.utilities import model_helpers

_PACKAGES = ("lightning.pytorch.", "pytorch_lightning.")


def lightning_class(value: object, name: str) -> type | None:
    """Returns Lightning's own class of that name that `value` is an instance of, of either package."""
    for kind in type(value).__mro__:
        if kind.__name__ == name and kind.__module__.startswith(_PACKAGES):
            return kind
    return None


def is_module(model: object) -> TypeGuard[pl.LightningModule]:
    """Whether a model is a LightningModule of either package."""
    return lightning_class(model, "LightningModule") is not None


def is_overridden(method: str, owner: object) -> bool:
    """Whether the user wrote this method of a module or data module."""
    parents = ("LightningModule", "LightningDataModule")
    parent = next(filter(None, (lightning_class(owner, name) for name in parents)), None)
    if parent is None:
        return callable(getattr(owner, method, None))
    return model_helpers.is_overridden(method, owner, parent=parent)


def is_strategy(strategy: object, *names: str) -> bool:
    """Whether a strategy is one of those, or derived from one."""
    return any(lightning_class(strategy, name) is not None for name in names)


def shards_weights(strategy: object) -> bool:
    """Whether no process has the whole weights."""
    return is_strategy(strategy, "FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy")
