"""Where a Trainer gets its training batches from, and how that changes while it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_fairprune._files import pack_bits, unpack_bits
from lightning_fairprune._lightning.kinds import is_overridden
from lightning_fairprune._loading.index import IndexedBatch
from lightning_fairprune._loading.labels import fingerprint
from lightning_fairprune._loading.rebuild import check_restrictable, rebuild, sampled_dataset
from lightning_fairprune._loading.sampler import EpochSampler

__all__ = ["TrainSource"]


class TrainSource:
    """Serves the user's training loader restricted to the kept samples.

    The Trainer learns of a new number of batches by the public way only: the source asks it to
    reload its loaders once, and takes the request back as soon as the reload comes. Later draws of
    the same size need no reload, they go to the sampler in place.

    Args:
        load: the user's own ``train_dataloader``.
        seed: of the order of samples.
    """

    def __init__(self, load: Callable[[], Any], *, seed: int = 0) -> None:
        self._load = load
        self.seed = seed
        self.kept: Tensor | None = None
        self.carry_index = False
        self.indices: Tensor | None = None
        """Dataset index of each sample of the current batch, int64 [B], on the device."""
        self.on_load: Callable[[DataLoader[Any]], None] | None = None
        """Called with every loader that is built, before the Trainer sees it."""
        self.trainer: pl.Trainer | None = None
        self.dataset: Any = None
        """The data set that indices refer to, once the Trainer has asked for the loader."""
        self._loader: DataLoader[Any] | None = None
        self._fingerprint: dict[str, Any] | None = None
        self._epoch, self._batches_seen = 0, 0
        self._users_reload: int | None = None

    # ------------------------------------------------------------------ what the Trainer asks for

    def train_dataloader(self) -> DataLoader[Any]:
        """Returns a new loader over the kept samples, in place of the user's."""
        trainer = self.attached
        if self._users_reload is not None:
            trainer.reload_dataloaders_every_n_epochs = self._users_reload  # type: ignore[attr-defined]
            self._users_reload = None
        users = self._load()
        check_restrictable(users)
        self.dataset = sampled_dataset(users)
        self._check_same_data()
        self._loader = rebuild(
            users,
            kept=self.kept,
            carry_index=self.carry_index,
            seed=self.seed,
            epoch=self._epoch,
            batches_seen=self._batches_seen,
            **_shard(trainer),
        )
        self._batches_seen = 0
        if self.on_load is not None:
            self.on_load(self._loader)
        return self._loader

    def users_loader(self) -> Any:
        """Returns what the user's own ``train_dataloader`` returns."""
        return self._load()

    def patch(self, owner: Any) -> Callable[[], None]:
        """Serves `owner.train_dataloader()` from here; returns the function that undoes it."""
        return _replaced(owner, "train_dataloader", lambda: self.train_dataloader())

    def strip_indices(self, trainer: pl.Trainer) -> Callable[[], None]:
        """Takes the indices off each batch before any hook of the user's; returns the undo.

        The hook goes where the Trainer would look for the user's own, and hands over to it.
        """
        owner: Any = trainer.lightning_module
        data = trainer.datamodule  # type: ignore[attr-defined]
        name = "on_before_batch_transfer"
        if data is not None and (is_overridden(name, data) or not is_overridden(name, owner)):
            owner = data
        users = getattr(owner, name)

        def on_before_batch_transfer(batch: Any, dataloader_idx: int) -> Any:
            if isinstance(batch, IndexedBatch):
                device = trainer.strategy.root_device
                self.indices = batch.indices.to(device, non_blocking=True)
                batch = batch.batch
            return users(batch, dataloader_idx)

        return _replaced(owner, name, on_before_batch_transfer)

    # ------------------------------------------------------------------------------- facts of it

    @property
    def loader(self) -> DataLoader[Any]:
        """The loader that the Trainer was given last."""
        if self._loader is None:
            raise RuntimeError(
                "the Trainer never asked for the training data: loaders passed to trainer.fit() "
                "cannot be pruned, return them from train_dataloader() instead."
            )
        return self._loader

    @property
    def sampler(self) -> EpochSampler:
        """The sampler of that loader."""
        sampler = self.loader.sampler
        assert isinstance(sampler, EpochSampler)
        return sampler

    @property
    def num_samples(self) -> int:
        """N of the data set, kept or not."""
        return len(self.sampler.dataset)  # type: ignore[arg-type]

    def num_batches(self, samples: int) -> int:
        """Batches of one rank in an epoch over `samples` samples, before any limit."""
        sampler, batch_size = self.sampler, self.loader.batch_size
        assert batch_size is not None
        size = sampler.size_of(samples)
        return size // batch_size if self.loader.drop_last else -(-size // batch_size)

    # ----------------------------------------------------------------------------------- the swap

    def reset(self) -> None:
        """Forgets what an earlier fit decided."""
        self.kept, self.indices, self._loader, self._fingerprint = None, None, None, None
        self._epoch, self._batches_seen = 0, 0

    def detach(self) -> None:
        """Serves plain batches again; a wrapper may be used without the callback afterwards."""
        self.carry_index, self.on_load = False, None

    def keep(self, kept: Tensor) -> None:
        """Trains on `kept` (sorted int64 indices) from the next epoch on."""
        same_length = self.kept is not None and len(self.kept) == len(kept)
        self.kept = kept
        if same_length and self._loader is not None:
            self.sampler.keep(kept)
        else:
            self.request_reload()

    def request_reload(self, *, at_once: bool = False) -> None:
        """Makes the Trainer call `train_dataloader()` at the start of the next epoch.

        Args:
            at_once: also if it has called it for that epoch already. The Trainer reloads when at
                least this many epochs have passed since the last time, and -1 always have.
        """
        trainer = self.attached
        if self._users_reload is None:
            self._users_reload = trainer.reload_dataloaders_every_n_epochs  # type: ignore[attr-defined]
        trainer.reload_dataloaders_every_n_epochs = -1 if at_once else 1  # type: ignore[attr-defined]

    # ---------------------------------------------------------------------------------- resuming

    def state_dict(self) -> dict[str, Any]:
        """Returns kept indices, epoch and position as CPU tensors and primitives."""
        epoch, batches_seen = self._position()
        return {
            "kept": None if self.kept is None else _bits(self.kept),
            "epoch": epoch,
            "batches_seen": batches_seen,
            "fingerprint": self._fingerprint,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues where `state_dict` was taken."""
        kept = state["kept"]
        self.kept = None if kept is None else unpack_bits(*kept).nonzero().squeeze(1)
        self._epoch, self._batches_seen = state["epoch"], state["batches_seen"]
        self._fingerprint = state["fingerprint"]
        if self._loader is not None:
            # Strategies that restore late (FSDP, DeepSpeed) have built the loader by now, and counted it
            # for epoch 0, which may be the one to go on in.
            self._check_same_data()
            self.request_reload(at_once=True)

    def _position(self) -> tuple[int, int]:
        """Returns the epoch that comes next or is under way, and its batches that are done."""
        if self.trainer is None or self._loader is None:
            return self._epoch, self._batches_seen
        loop = self.trainer.fit_loop
        done = loop.epoch_loop.batch_progress.current.processed  # type: ignore[attr-defined]
        if done >= self.trainer.num_training_batches:
            return self.trainer.current_epoch + 1, 0
        return self.trainer.current_epoch, done

    def _check_same_data(self) -> None:
        found = fingerprint(self.dataset)
        expected, self._fingerprint = self._fingerprint, found
        if expected is None:
            return
        if expected["length"] != found["length"]:
            raise ValueError(
                f"the training set has {found['length']} samples, but pruning started with "
                f"{expected['length']}, so the checkpoint's indices refer to other samples: resume "
                "with the same data."
            )
        if None not in (expected["labels"], found["labels"]) and expected != found:
            raise ValueError(
                f"the labels of the {found['length']} training samples are different from those "
                "at the start of pruning: the data or its order changed; resume with the same data."
            )

    @property
    def attached(self) -> pl.Trainer:
        """The Trainer that is served."""
        if self.trainer is None:
            raise RuntimeError("a TrainSource needs a Trainer: call trainer.fit() first.")
        return self.trainer


def _bits(kept: Tensor) -> tuple[Tensor, int]:
    """Returns a bit per sample, and how many: an eighth of a byte where an index takes eight."""
    mask = torch.zeros(int(kept[-1]) + 1 if len(kept) else 0, dtype=torch.bool)
    mask[kept] = True
    return pack_bits(mask), len(mask)


def _shard(trainer: pl.Trainer) -> dict[str, int]:
    """Which part of an epoch this rank gets; all of it where the user said not to shard."""
    wanted = getattr(trainer._accelerator_connector, "use_distributed_sampler", True)
    shard: dict[str, Any] | None = trainer.distributed_sampler_kwargs
    if not wanted or shard is None:
        return {}
    return {"num_replicas": shard["num_replicas"], "rank": shard["rank"]}


def _replaced(owner: Any, name: str, function: Callable[..., Any]) -> Callable[[], None]:
    """Sets a method of an instance; returns the undo, which knows if it had one of its own."""
    before = owner.__dict__.get(name)
    setattr(owner, name, function)

    def undo() -> None:
        if before is None:
            owner.__dict__.pop(name, None)
        else:
            setattr(owner, name, before)

    return undo
