"""What the data modules of images have in common."""

from __future__ import annotations

from typing import Any, Literal

import lightning.pytorch as pl
from torch import Tensor
from torch.utils.data import DataLoader

Split = Literal["paper", "clean"]


class ImageModule(pl.LightningDataModule):
    """Loaders over three data sets, which `setup` makes."""

    class_names: Any
    groups: Tensor | None = None
    group_names: tuple[str, ...] | None = None
    train_set: Any = None
    val_set: Any = None
    test_set: Any = None

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.class_names)

    def train_dataloader(self) -> DataLoader[Any]:
        """Returns the training set, shuffled."""
        return self._loader(self.train_set, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """Returns the validation set."""
        return self._loader(self.val_set)

    def test_dataloader(self) -> DataLoader[Any]:
        """Returns the test set."""
        return self._loader(self.test_set)

    def _loader(self, dataset: Any, **options: Any) -> DataLoader[Any]:
        if dataset is None:
            raise RuntimeError(f"call setup() of {type(self).__name__} before its loaders.")
        return DataLoader(dataset, **(self._options(dataset) | options))

    def _options(self, dataset: Any) -> dict[str, Any]:
        raise NotImplementedError


def check_split(split: str, val_fraction: float) -> None:
    """Raises if an argument is out of range."""
    if split not in ("paper", "clean"):
        raise ValueError(f"`split` must be 'paper' or 'clean', got {split!r}.")
    if not 0 < val_fraction < 1:
        raise ValueError(f"`val_fraction` must be in (0, 1), got {val_fraction}.")
