"""A copy of model, optimisers and schedules."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.nn import Parameter


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """Copies, on the host, of weights, all buffers, optimisers and schedules.

    Without random states: a restarted model draws new dropout masks and augmentations.
    """

    tensors: dict[str, Tensor]
    optimizers: list[dict[str, Any]]
    schedulers: list[dict[str, Any]]

    @classmethod
    def take(cls, trainer: pl.Trainer, module: pl.LightningModule) -> Snapshot:
        """Copies the present state."""
        return cls(
            {name: tensor.detach().cpu().clone() for name, tensor in _tensors(module).items()},
            [copy.deepcopy(optimizer.state_dict()) for optimizer in trainer.optimizers],
            [copy.deepcopy(c.scheduler.state_dict()) for c in trainer.lr_scheduler_configs],
        )

    def restore(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Restores the state in place, so that optimisers and wrappers keep their references."""
        self.restore_tensors(module)
        self.restore_optimizers(trainer)

    def restore_tensors(self, module: pl.LightningModule) -> None:
        """Restores weights and buffers; a buffer that is new stays as it is."""
        with torch.no_grad():
            for name, tensor in _tensors(module).items():
                if name in self.tensors or isinstance(tensor, Parameter):
                    tensor.copy_(self.tensors[name])

    def restore_optimizers(self, trainer: pl.Trainer) -> None:
        """Restores optimisers and schedules."""
        for optimizer, state in zip(trainer.optimizers, self.optimizers, strict=True):
            optimizer.load_state_dict(copy.deepcopy(state))
        for config, state in zip(trainer.lr_scheduler_configs, self.schedulers, strict=True):
            config.scheduler.load_state_dict(copy.deepcopy(state))

    def state_dict(self) -> dict[str, Any]:
        """Returns tensors and primitives."""
        return {name: getattr(self, name) for name in ("tensors", "optimizers", "schedulers")}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Snapshot:
        """Returns the snapshot that `state_dict` came from."""
        return cls(state["tensors"], state["optimizers"], state["schedulers"])


def _tensors(module: torch.nn.Module) -> dict[str, Tensor]:
    return dict(module.named_parameters()) | dict(module.named_buffers())
