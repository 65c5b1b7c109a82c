"""The papers' way to train: cross entropy, SGD and a schedule over the whole of training."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_fairprune.callbacks import planned_stepping_batches
from lightning_fairprune.experiments.models._initial import xavier

Schedule = Literal["multistep", "triangle", "cosine"]


def lr_factor(
    step: int,
    steps: int,
    schedule: Schedule = "triangle",
    *,
    rise: float = 0.2,
    milestones: Sequence[float] = (0.5, 0.75),
    gamma: float = 0.2,
) -> float:
    """Returns the learning rate of a step as a multiple of the base rate.

    ``"multistep"`` multiplies by `gamma` at each milestone; ``"triangle"`` rises linearly and falls
    linearly to 0; ``"cosine"`` rises linearly and falls as half a cosine.

    Args:
        step: of `steps`, from 0.
        steps: of all training.
        schedule: one of the three.
        rise: share of the steps in which the rate rises, in [0, 1); not for ``"multistep"``.
        milestones: shares of the steps, in (0, 1).
        gamma: factor of each milestone.

    Example:
        >>> [round(lr_factor(step, 9, rise=0.5), 2) for step in range(10)]
        [0.2, 0.4, 0.6, 0.8, 1.0, 0.8, 0.6, 0.4, 0.2, 0.0]
    """
    if schedule == "multistep":
        return float(gamma ** sum(step >= share * steps for share in milestones))
    done = min(1.0, (step + 1) / (steps + 1))
    if done < rise:
        return done / rise
    fallen = (done - rise) / (1 - rise)
    return 1 - fallen if schedule == "triangle" else 0.5 + 0.5 * math.cos(math.pi * fallen)


class Classifier(pl.LightningModule):
    """Any network for images, trained with cross entropy and SGD.

    Batches are ``(images, labels)``; a group as a third is left to callbacks. Logs ``train/loss``,
    ``{val,test}/loss`` and ``{val,test}/accuracy``. Schedules run step by step over
    `lightning_fairprune.planned_stepping_batches`, so that they end with training whatever is pruned
    on the way; only whole `milestones` are counted in epochs.

    Args:
        network: a function without arguments that returns the network, from images [B, C, H, W] to
            logits [B, K], drawn from the seed of that moment; in YAML its class path and arguments. A
            network is taken as it is.
        lr: base learning rate.
        momentum: of SGD.
        weight_decay: of all weights.
        nesterov: whether the momentum is Nesterov's.
        schedule: ``"multistep"``, ``"triangle"`` or ``"cosine"``, see `lr_factor`; None keeps `lr`.
        milestones: where ``"multistep"`` multiplies by `gamma`: shares of training in (0, 1), or
            epochs, whole numbers from 1.
        gamma: factor of each milestone.
        rise: share of training in which ``"triangle"`` and ``"cosine"`` rise.
        init: ``"xavier"`` redraws the weights of convolutions and linear layers as the published
            code of DRoP does, normal with gain sqrt(2), with biases 0; None leaves the network's own.
        channels_last: whether weights and images are laid out so, which convolutions like.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> from lightning_fairprune.experiments.models import SmallCNN
        >>> Classifier(SmallCNN, lr=0.4)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        network: Callable[[], nn.Module],
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        nesterov: bool = False,
        schedule: Schedule | None = "multistep",
        milestones: list[float] = [0.5, 0.75],  # noqa: B006  # read only, and plain in YAML
        gamma: float = 0.2,
        rise: float = 0.2,
        init: Literal["xavier"] | None = None,
        channels_last: bool = True,
    ) -> None:
        super().__init__()
        if not lr > 0:
            raise ValueError(f"`lr` must be above 0, got {lr}.")
        if schedule not in ("multistep", "triangle", "cosine", None):
            raise ValueError(
                f"`schedule` must be 'multistep', 'triangle', 'cosine' or None, got {schedule!r}."
            )
        shares = all(0 < m < 1 for m in milestones)
        epochs = all(m >= 1 and m == int(m) for m in milestones)
        if not (shares or epochs) or list(milestones) != sorted(milestones):
            raise ValueError(
                "`milestones` must be shares of training in (0, 1) or whole epochs from 1, all of one kind "
                f"and rising, got {list(milestones)}."
            )
        if not gamma > 0:
            raise ValueError(f"`gamma` must be above 0, got {gamma}.")
        if not 0 <= rise < 1:
            raise ValueError(f"`rise` must be in [0, 1), got {rise}.")
        if init not in ("xavier", None):
            raise ValueError(f"`init` must be 'xavier' or None, got {init!r}.")
        self.network = network if isinstance(network, nn.Module) else network()
        self.criterion = nn.CrossEntropyLoss()  # a module, so that ClassWeighting can weight it
        self.lr, self.momentum, self.weight_decay = lr, momentum, weight_decay
        self.nesterov = nesterov
        self.schedule, self.milestones, self.gamma, self.rise = schedule, milestones, gamma, rise
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        if init == "xavier":
            self.network.apply(xavier)
        if channels_last:
            self.network.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits [B, K]."""
        return torch.as_tensor(self.network(images.contiguous(memory_format=self.memory_format)))

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        """Returns the loss of one batch."""
        loss = torch.as_tensor(self.criterion(self(batch[0]), batch[1]))
        self.log("train/loss", loss, batch_size=len(batch[1]))
        return loss

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        """Logs loss and accuracy."""
        self._evaluate("val", batch)

    def test_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        """Logs loss and accuracy."""
        self._evaluate("test", batch)

    def _evaluate(self, stage: str, batch: Sequence[Tensor]) -> None:
        images, labels = batch[0], batch[1]
        logits = self(images)
        loss = F.cross_entropy(logits, labels)
        accuracy = (logits.argmax(1) == labels).float().mean()
        self.log_dict(
            {f"{stage}/loss": loss, f"{stage}/accuracy": accuracy},
            batch_size=len(labels),
            sync_dist=True,
        )

    def configure_optimizers(self) -> Any:
        """Returns SGD with the schedule."""
        decay: Any = {"weight_decay": self.weight_decay, "nesterov": self.nesterov}
        optimizer = torch.optim.SGD(self.parameters(), self.lr, self.momentum, **decay)
        schedule = self.schedule
        if schedule is None or (schedule == "multistep" and not self.milestones):
            return optimizer
        if schedule == "multistep" and self.milestones[0] >= 1:
            epochs = [int(epoch) for epoch in self.milestones]
            multistep = torch.optim.lr_scheduler.MultiStepLR(optimizer, epochs, self.gamma)
            return {"optimizer": optimizer, "lr_scheduler": multistep}
        steps = planned_stepping_batches(self.trainer)
        options: Any = {"rise": self.rise, "milestones": self.milestones, "gamma": self.gamma}
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: lr_factor(step, steps, schedule, **options)
        )
        by_step = {"scheduler": scheduler, "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": by_step}
