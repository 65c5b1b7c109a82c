"""For projects that import `pytorch_lightning` where others import `lightning.pytorch`.

Those are two packages with a class tree each. The callbacks of :mod:`lightning_fairprune` go into the Trainer
of either; what must derive from a class of `pytorch_lightning` is here: the data module, and the callbacks
for a LightningCLI of `pytorch_lightning`, which looks at their class.
"""

# mypy: disable-error-code="misc"
# `trainer` of the data module is typed with a Trainer of its own package.

from __future__ import annotations

import pytorch_lightning

from lightning_fairprune._loading.wrapper import Wrapper, wrong_kind
from lightning_fairprune._twins import (
    ClassWeighting,
    DataPruning,
    RecallMonitor,
    RecallOffsets,
    WeightPruning,
)
from lightning_fairprune.selection import Selection

__all__ = [
    "ClassWeighting",
    "DataPruning",
    "FairPruneDataModule",
    "RecallMonitor",
    "RecallOffsets",
    "WeightPruning",
]


class FairPruneDataModule(Wrapper, pytorch_lightning.LightningDataModule):
    """Wraps a data module of ``pytorch_lightning`` so that its training set can be pruned.

    Otherwise the same as :class:`lightning_fairprune.FairPruneDataModule`.

    Args:
        datamodule: the user's own.
        selection: a :class:`~lightning_fairprune.Selection`, or the path of a saved one, to train on from
            the first epoch: the second of two phases.
        seed: of the order in which samples are drawn.

    Raises:
        TypeError: If `datamodule` is not a LightningDataModule of ``pytorch_lightning``.

    Example:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> data = TensorDataset(torch.zeros(8, 2), torch.arange(8) % 2)
        >>> users = pytorch_lightning.LightningDataModule.from_datasets(data, batch_size=4)
        >>> FairPruneDataModule(users).datamodule is users
        True
    """

    def __init__(
        self,
        datamodule: pytorch_lightning.LightningDataModule,
        selection: Selection | str | None = None,
        *,
        seed: int = 0,
    ) -> None:
        if not isinstance(datamodule, pytorch_lightning.LightningDataModule):
            raise TypeError(wrong_kind(datamodule, "pytorch_lightning", "lightning_fairprune"))
        super().__init__(datamodule, selection, seed)
