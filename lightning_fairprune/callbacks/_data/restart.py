"""What the model restarts from: all that the warm-up may change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torchmetrics import Metric, MetricTracker

from lightning_fairprune._lightning.kinds import lightning_class
from lightning_fairprune._lightning.snapshot import Snapshot
from lightning_fairprune.callbacks._data import held


@dataclass(frozen=True, slots=True, eq=False)
class Start:
    """The state of a fit before its first step, as far as ``after="restart"`` returns to it."""

    snapshot: Snapshot
    trainable: dict[str, bool]
    """requires_grad of every parameter."""
    buffers: dict[str, bool]
    """Whether each registered buffer had a tensor."""
    precision: dict[str, Any]
    held: dict[str, Any]

    @classmethod
    def take(cls, trainer: pl.Trainer, module: pl.LightningModule) -> Start:
        """Copies the present state; raises if weights have no values yet."""
        named = dict(module.named_parameters()) | dict(module.named_buffers())
        for name, tensor in named.items():
            if is_lazy(tensor):
                raise ValueError(
                    f"after='restart' returns to the weights of the start of the fit, but `{name}` has no values before "
                    "the first batch: call the model on a batch in `setup` or `configure_model`."
                )
        return cls(
            Snapshot.take(trainer, module),
            {name: p.requires_grad for name, p in module.named_parameters()},
            {name: buffer is not None for _, _, name, buffer in _registered(module)},
            dict(trainer.precision_plugin.state_dict()),
            held.held(trainer, module),
        )

    def check(self, module: nn.Module) -> None:
        """Raises if the warm-up has added, removed or reshaped a parameter."""
        now = dict(module.named_parameters())
        for name in [*self.trainable, *now]:
            before = self.snapshot.tensors.get(name) if name in self.trainable else None
            if before is None or name not in now or before.shape != now[name].shape:
                change = "added" if before is None else "removed" if name not in now else "reshaped"
                raise RuntimeError(
                    f"DataPruning(after='restart') cannot restart a model whose parameter `{name}` was {change} in the "
                    "warm-up: make all parameters before training starts, or use after='continue'."
                )

    def fits(self, trainer: pl.Trainer) -> bool:
        """Whether optimisers and schedules are as many, with as many parameters, as at the start."""
        if len(trainer.lr_scheduler_configs) != len(self.snapshot.schedulers):
            return False
        now = [[len(g["params"]) for g in o.param_groups] for o in trainer.optimizers]
        return now == [
            [len(g["params"]) for g in s["param_groups"]] for s in self.snapshot.optimizers
        ]

    def restore(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Restores all but optimisers and schedules."""
        self.check(module)
        changed = [*self._restore_flags(module), *self._restore_buffers(module)]
        self.snapshot.restore_tensors(module)
        module.zero_grad(set_to_none=True)
        for part in module.modules():
            if isinstance(part, Metric):
                part.reset()
            elif isinstance(part, MetricTracker):
                # The first is the metric that each step copies.
                for step in list(part._modules)[1:]:
                    del part._modules[step]
        if self.precision:
            trainer.precision_plugin.load_state_dict(dict(self.precision))
        held.restore(self.held, trainer, module)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            _forget_scores(callback)
        if changed:
            rank_zero_info(
                "DataPruning(after='restart') restores more than weights: "
                + "; ".join(changed)
                + ". Hooks that go by the number of the epoch do not run again for the final model."
            )

    def _restore_flags(self, module: nn.Module) -> Iterator[str]:
        for name, parameter in module.named_parameters():
            if parameter.requires_grad != self.trainable[name]:
                parameter.requires_grad_(self.trainable[name])
                yield f"requires_grad={self.trainable[name]} of `{name}`"

    def _restore_buffers(self, module: nn.Module) -> Iterator[str]:
        """Removes or empties buffers that the warm-up made, and gives others their first shape."""
        for part, own, name, buffer in list(_registered(module)):
            first = self.snapshot.tensors.get(name)
            if name not in self.buffers:
                if own in part._non_persistent_buffers_set:
                    rank_zero_warn(
                        f"DataPruning(after='restart') keeps `{name}`, which the warm-up made and which is no part of "
                        "the model's state: make it before training starts if it depends on what was trained."
                    )
                    continue
                delattr(part, own)
                yield f"`{name}`, made in the warm-up, is removed"
            elif not self.buffers[name] and buffer is not None:
                part._buffers[own] = None
                yield f"`{name}` is None again"
            elif first is not None and (buffer is None or buffer.shape != first.shape):
                device = next((p.device for p in module.parameters()), torch.device("cpu"))
                part._buffers[own] = first.to(device, copy=True)

    def state_dict(self) -> dict[str, Any]:
        """Returns tensors and primitives."""
        names = ("trainable", "buffers", "precision", "held")
        return self.snapshot.state_dict() | {name: getattr(self, name) for name in names}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any], module: nn.Module) -> Start:
        """Returns the start that `state_dict` came from; older ones have tensors, optimisers and schedules."""
        if "trainable" in state:
            names = ("trainable", "buffers", "precision", "held")
            return cls(Snapshot.from_state_dict(state), *(state[name] for name in names))
        return cls(
            Snapshot.from_state_dict(state),
            {name: p.requires_grad for name, p in module.named_parameters()},
            {name: buffer is not None for _, _, name, buffer in _registered(module)},
            {},
            {},
        )


def check_callbacks(trainer: pl.Trainer, warmup: int) -> None:
    """Raises for callbacks that change the model in the warm-up in a way that a restart cannot repeat."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        name = type(callback).__name__
        if lightning_class(callback, "StochasticWeightAveraging") and callback.swa_start <= warmup:
            raise ValueError(
                f"DataPruning(after='restart') restarts the model after its warm-up of {warmup} epochs, and {name} "
                f"would average weights of the warm-up: set swa_epoch_start above {warmup + 1}."
            )
        if lightning_class(callback, "BackboneFinetuning"):
            if callback.unfreeze_backbone_at_epoch <= warmup:
                raise ValueError(
                    f"DataPruning(after='restart') freezes the backbone again after its warm-up of {warmup} epochs, and "
                    f"{name} unfreezes it once: set unfreeze_backbone_at_epoch above {warmup}."
                )
        elif lightning_class(callback, "BaseFinetuning"):
            raise ValueError(
                f"DataPruning(after='restart') does not work with {name}, which changes the model by the number of the "
                "epoch, so that what it did in the warm-up is not done for the final model: use after='continue', or "
                "two fits, the second with FairPruneDataModule(datamodule, selection=...)."
            )


def _registered(module: nn.Module) -> Iterator[tuple[nn.Module, str, str, Tensor | None]]:
    """Yields each module, its own name of a buffer, the full name, and the buffer."""
    for prefix, part in module.named_modules():
        for own, buffer in part._buffers.items():
            yield part, own, f"{prefix}.{own}" if prefix else own, buffer


def _forget_scores(callback: Any) -> None:
    """Makes every score of the warm-up the worst possible one, so that the first of the final model wins."""
    stops = lightning_class(callback, "EarlyStopping") is not None
    keeps = (
        lightning_class(callback, "ModelCheckpoint") is not None and callback.monitor is not None
    )
    if not stops and not keeps:
        return
    worst = torch.tensor(float("inf" if callback.mode == "min" else "-inf"))
    if stops:
        callback.wait_count, callback.best_score = 0, worst
        return
    # Their files are replaced by those of the final model.
    callback.best_k_models = dict.fromkeys(callback.best_k_models, worst)
    callback.kth_value = worst
    callback.best_model_path, callback.best_model_score, callback.current_score = "", None, None
