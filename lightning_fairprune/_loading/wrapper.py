"""The wrapper of a LightningDataModule that makes its training data prunable."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import lightning.pytorch as pl

from lightning_fairprune._lightning.kinds import is_overridden, lightning_class
from lightning_fairprune._loading.source import TrainSource
from lightning_fairprune.selection import Selection

# The Trainer tests whether these hooks exist: forwarded only if the user has them.
_FORWARDED = (
    "prepare_data",
    "val_dataloader",
    "test_dataloader",
    "predict_dataloader",
    "on_before_batch_transfer",
    "transfer_batch_to_device",
    "on_after_batch_transfer",
)


class Wrapper:
    """FairPruneDataModule without its base class, which is that of either Lightning package."""

    def __init__(self, datamodule: Any, selection: Selection | str | None, seed: int) -> None:
        self.datamodule: pl.LightningDataModule = datamodule
        super().__init__()
        self._log_hyperparams = datamodule._log_hyperparams
        self.prepare_data_per_node = datamodule.prepare_data_per_node
        self.allow_zero_length_dataloader_with_multiple_devices = (
            datamodule.allow_zero_length_dataloader_with_multiple_devices
        )
        self._undo: list[Callable[[], None]] = []
        self.source = TrainSource(self._users_train_dataloader, seed=seed)
        self.selection = (
            Selection.load(selection) if isinstance(selection, (str, os.PathLike)) else selection
        )
        if self.selection is not None:
            if not len(self.selection):
                raise ValueError(
                    "`selection` must keep at least one sample to train on, it keeps none of "
                    f"{self.selection.num_samples}: check the quotas that it was made with."
                )
            self.source.kept = self.selection.indices
            self.source.on_load = self._check_selection
        for name in _FORWARDED:
            if is_overridden(name, datamodule):
                setattr(self, name, getattr(datamodule, name))

    def _check_selection(self, loader: Any) -> None:
        assert self.selection is not None
        size = len(loader.sampler.dataset)
        if self.selection.num_samples != size:
            raise ValueError(
                f"`selection` was made from {self.selection.num_samples} samples, the training set "
                f"has {size}: use the selection of this data set."
            )

    # The Trainer sets `trainer` on this module; the wrapped one needs it as well.
    @property
    def trainer(self) -> pl.Trainer | None:
        """The Trainer in use."""
        return self.datamodule.trainer

    @trainer.setter
    def trainer(self, trainer: pl.Trainer | None) -> None:
        self.datamodule.trainer = trainer
        if "source" in self.__dict__:
            self.source.trainer = trainer

    @property
    def hparams(self) -> Any:
        """Hyper-parameters of the wrapped module."""
        return self.datamodule.hparams

    @property
    def hparams_initial(self) -> Any:
        """Hyper-parameters of the wrapped module as it was built."""
        return self.datamodule.hparams_initial

    def __getattr__(self, name: str) -> Any:
        if name == "datamodule" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.datamodule, name)

    def __setattr__(self, name: str, value: Any) -> None:
        # An attribute of the wrapped module alone is set there, e.g. by the batch size finder.
        ours = name in self.__dict__ or hasattr(type(self), name) or "source" not in self.__dict__
        if not ours and hasattr(self.datamodule, name):
            setattr(self.datamodule, name, value)
        else:
            super().__setattr__(name, value)

    def setup(self, stage: str) -> None:
        """Sets the wrapped module up, and serves the Trainer of a fit."""
        self.datamodule.setup(stage)
        if stage == "fit" and self.trainer is not None:
            self._stop_serving()
            self.source.rewind()
            self._undo.append(self.source.serve(self.trainer))

    def teardown(self, stage: str) -> None:
        """Tears the wrapped module down."""
        self._stop_serving()
        self.datamodule.teardown(stage)

    def on_exception(self, exception: BaseException) -> None:
        """Calls that of the wrapped module."""
        self._stop_serving()
        self.datamodule.on_exception(exception)

    def _stop_serving(self) -> None:
        while self._undo:
            self._undo.pop()()

    def train_dataloader(self) -> Any:
        """Returns the user's training loader over the kept samples, for others than the Trainer."""
        loader = self.source.plain_dataloader()
        if self.selection is not None:
            self._check_selection(loader)
        return loader

    def _users_train_dataloader(self) -> Any:
        # A method and not a lambda: copies and pickles of the wrapper serve their own data.
        return self.datamodule.train_dataloader()

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of the kept samples and of the wrapped module."""
        return {"source": self.source.state_dict(), "datamodule": self.datamodule.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned; in other stages than the fit, the kept samples stay."""
        if self.trainer is None or self.trainer.state.fn in (None, "fit"):
            self.source.load_state_dict(state_dict["source"])
        self.datamodule.load_state_dict(state_dict["datamodule"])


class FairPruneDataModule(Wrapper, pl.LightningDataModule):
    """Wraps any LightningDataModule so that its training set can be pruned.

    Everything but the training loader is the wrapped module's: loaders, hooks, attributes, hyper-
    parameters and state. The training loader is rebuilt over the kept samples: all of them until
    :class:`~lightning_fairprune.DataPruning` prunes, or those of `selection` from the start. Hooks that call
    ``train_dataloader()`` in a fit get a loader of their own over these samples, which does not change that of
    the Trainer.

    For a data module of ``pytorch_lightning``, use :class:`lightning_fairprune.pl.FairPruneDataModule`.

    Args:
        datamodule: the data module to wrap.
        selection: a :class:`~lightning_fairprune.Selection`, or the path of a saved one, to train
            on from the first epoch: the second of two phases.
        seed: of the order of the samples.

    Raises:
        TypeError: If `datamodule` is not a LightningDataModule.

    Example:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> data = TensorDataset(torch.zeros(8, 2), torch.arange(8) % 2)
        >>> users = pl.LightningDataModule.from_datasets(data, batch_size=4)
        >>> FairPruneDataModule(users).datamodule is users
        True
    """

    def __init__(
        self,
        datamodule: pl.LightningDataModule,
        selection: Selection | str | None = None,
        *,
        seed: int = 0,
    ) -> None:
        if not isinstance(datamodule, pl.LightningDataModule):
            raise TypeError(wrong_kind(datamodule, "lightning.pytorch", "lightning_fairprune.pl"))
        super().__init__(datamodule, selection, seed)


def wrong_kind(datamodule: object, package: str, other: str) -> str:
    """Returns the message for a wrong data module, or one of the other Lightning package."""
    kind = type(datamodule)
    told = f"`datamodule` must be a {package}.LightningDataModule, got {kind.__module__}.{kind.__qualname__}"
    foreign = lightning_class(datamodule, "LightningDataModule")
    if foreign is None:
        return f"{told}."
    style = foreign.__module__.removesuffix(".core.datamodule")
    return f"{told} of {style}: wrap it in {other}.FairPruneDataModule."
