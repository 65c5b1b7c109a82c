"""Averages of the weights, and other state, that callbacks and plain attributes of the module hold."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, TypeAlias

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, Dataset, Sampler
from torchmetrics import Metric

from lightning_fairprune._lightning.kinds import lightning_class

Place: TypeAlias = tuple[Any, str]
"""An object and the name of one of its attributes."""

_OURS = "lightning_fairprune."
_PRIMITIVES = (Tensor, int, float, str, bool, type(None))
_HANDLED = ("LightningDataModule", "Callback", "LightningOptimizer", "Trainer", "Strategy")


def held(trainer: pl.Trainer, module: pl.LightningModule) -> dict[str, Any]:
    """Returns copies of what is held: name -> state, or None of an attribute that is None."""
    found: dict[str, Any] = {}
    for name, (owner, attribute) in _places(trainer, module).items():
        value = getattr(owner, attribute)
        if value is None:
            found[name] = None
        elif _is_held(value, trainer, module):
            state = _state(value)
            if all(isinstance(leaf, _PRIMITIVES) for leaf in tree_leaves(state)):
                found[name] = state
    return found


def restore(saved: dict[str, Any], trainer: pl.Trainer, module: pl.LightningModule) -> None:
    """Restores what `held` returned; what has been made since is removed, to be made again."""
    for name, (owner, attribute) in _places(trainer, module).items():
        value = getattr(owner, attribute)
        if value is None or not _is_held(value, trainer, module):
            continue
        if saved.get(name) is not None:
            _load(value, saved[name])
        elif name in saved:
            setattr(owner, attribute, None)
        elif isinstance(value, nn.Module):
            delattr(owner, attribute)
        else:
            rank_zero_warn(
                f"DataPruning(after='restart') does not restart `{name}`, which the warm-up made or whose state is more "
                "than tensors and numbers: restart it yourself in `on_train_epoch_start`."
            )


def _named(trainer: pl.Trainer) -> Iterator[tuple[str, Any]]:
    """Yields the callbacks of the user, with the same names in a resumed fit."""
    count: dict[str, int] = {}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        kind = type(callback)
        if not kind.__module__.startswith(_OURS):
            count[kind.__qualname__] = number = count.get(kind.__qualname__, 0) + 1
            yield kind.__qualname__ + ("" if number == 1 else f"[{number}]"), callback


def _places(trainer: pl.Trainer, module: pl.LightningModule) -> dict[str, Place]:
    owners = [*_named(trainer), (type(module).__qualname__, module)]
    return {
        f"{name}.{attribute}": (owner, attribute)
        for name, owner in owners
        for attribute in list(vars(owner))
        if not (owner is module and attribute in _LIGHTNINGS)
    }


_LIGHTNINGS = set(vars(pl.LightningModule()))


def _is_held(value: Any, trainer: pl.Trainer, module: pl.LightningModule) -> bool:
    """Whether a value is a module, shadow weights, or an object with a state, that nothing else restores."""
    if isinstance(value, dict | list):
        return _shadows(value, module)
    if isinstance(value, type):
        return False
    if isinstance(value, nn.Module):
        own = {id(part) for part in module.modules()} | {id(trainer.model)}
        return id(value) not in own and not any(id(part) in own for part in value.modules())
    handled = isinstance(value, Optimizer | DataLoader | Dataset | Sampler) or any(
        lightning_class(value, n) for n in _HANDLED
    )
    schedules = [config.scheduler for config in trainer.lr_scheduler_configs]
    if handled or any(value is schedule for schedule in schedules):
        return False
    return callable(getattr(value, "load_state_dict", None)) and callable(
        getattr(value, "state_dict", None)
    )


def _shadows(value: dict[Any, Any] | list[Any], module: nn.Module) -> bool:
    """Whether these are copies of weights, by name or in their order."""
    if not value:
        return False
    if isinstance(value, dict):
        named = dict(module.named_parameters()) | dict(module.named_buffers())
        return all(
            isinstance(t, Tensor) and k in named and t is not named[k] for k, t in value.items()
        )
    shapes = [[p.shape for p in module.parameters() if p.requires_grad or all_] for all_ in (0, 1)]
    own = {id(p) for p in module.parameters()}
    tensors = all(isinstance(t, Tensor) and id(t) not in own for t in value)
    return tensors and [t.shape for t in value] in shapes


def _state(value: Any) -> Any:
    return _on_host(value if isinstance(value, dict | list) else value.state_dict())


def _on_host(state: Any) -> Any:
    if isinstance(state, Tensor):
        return state.detach().cpu().clone()
    if isinstance(state, dict):
        return {key: _on_host(part) for key, part in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(_on_host(part) for part in state)
    return copy.deepcopy(state)


def _load(value: Any, state: Any) -> None:
    if not isinstance(value, dict | list):
        value.load_state_dict(copy.deepcopy(state))
        for part in value.modules() if isinstance(value, nn.Module) else ():
            if isinstance(part, Metric):
                part.reset()
        return
    with torch.no_grad():
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            value[key].copy_(state[key])
