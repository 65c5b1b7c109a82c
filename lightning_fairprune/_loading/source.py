"""The source of the training batches of a Trainer, which can change during a fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader

from lightning_fairprune._lightning.kinds import is_overridden
from lightning_fairprune._lightning.replaced import replaced
from lightning_fairprune._loading.kept import kept_in, state_of
from lightning_fairprune._loading.labels import fingerprint, is_label, labels_of
from lightning_fairprune._loading.position import (
    Position,
    batches_in,
    batches_of,
    begin_epoch,
    is_at_epoch_start,
    is_to_move,
    now,
    progress,
    resumed,
)
from lightning_fairprune._loading.rebuild import (
    check_restrictable,
    copied,
    drawing,
    rebuild,
    resumes_itself,
    sampled_dataset,
    shown,
)
from lightning_fairprune._loading.sampler import EpochSampler
from lightning_fairprune._loading.served import InForm, only_loader, served, split


class TrainSource:
    """Serves the user's training loader, restricted to the kept samples.

    The Trainer gets a new number of batches in the public way: the source requests one reload of the
    loaders and withdraws the request at the reload. Later draws of the same size change the sampler in
    place.

    Args:
        load: returns what the user trains on: a loader, or a collection of one.
        seed: of the order of samples.
    """

    def __init__(self, load: Callable[[], Any], *, seed: int = 0) -> None:
        self._load = load
        self.seed = seed
        self.kept: Tensor | None = None
        self.classes: Tensor | None = None
        """Class (or group) of every sample, int64 [N], while quotas decide how many of each are trained on."""
        self.carry_index = False
        self.indices: Tensor | None = None
        """Dataset index of each sample of the current batch, int64 [B], on the device."""
        self.on_load: Callable[[DataLoader[Any]], None] | None = None
        """Called with every loader that is built, before the Trainer sees it."""
        self.trainer: pl.Trainer | None = None
        self.dataset: Any = None
        """The data set that indices refer to, once a loader is built."""
        self._loader: DataLoader[Any] | None = None
        self._carries = self._is_nested = False
        self._fingerprint: dict[str, Any] | None = None
        self._base = Position()
        self._resumed: Mapping[str, Any] | None = None
        """What the checkpoint has on the batches of its epoch, until the Trainer's count is that of the loader."""
        self._order: tuple[str, str] | None = None
        self._users_reload: int | None = None
        self.shows_all = False
        """Whether all samples are served for now, whatever is kept."""
        self._last_validation: float | None = None
        self._built: tuple[Tensor | None, int, int] = (None, 0, 0)
        """Kept samples, epoch and position that the loader was built with."""

    def train_dataloader(self) -> Any:
        """Returns a new loader over the kept samples for the Trainer, in the form of the user's."""
        trainer = self.attached
        if self._users_reload == 0:
            self._last_validation = getattr(trainer, "_last_val_time", None)
        self._withdraw_request()
        users = self._load()
        one = only_loader(users)
        self._carries, self._is_nested = self.carry_index, users is not one
        check_restrictable(one)
        self.dataset = sampled_dataset(one)
        self._check_same_data(resumed=self._loader is None)
        shard: dict[str, Any] = _shard(trainer)
        if trainer.world_size > 1 and not shard and drawing(one).is_own:
            raise TypeError(
                f"Trainer(use_distributed_sampler=False) leaves it to your {type(drawing(one).sampler).__name__} "
                "to share the samples among the ranks, so that it cannot be restricted to the kept ones: use a "
                "DistributedSampler, or leave the sharing to the Trainer."
            )
        if (
            self._resumed is None
            and self._base.samples > 0
            and self._base.epoch < trainer.current_epoch
        ):
            self._base, self._order = Position(trainer.current_epoch), None
        if self._base.samples < 0:
            batches: Any = one if one.batch_size is not None else one.batch_sampler
            done = self._base.batches * int(batches.batch_size) * shard.get("num_replicas", 1)
            self._base = replace(self._base, samples=done)
        kept = self._shown_kept
        self._built = kept, self._base.epoch, self._base.samples
        self._loader = rebuild(
            one,
            kept=kept,
            classes=self.classes,
            carry_index=self.carry_index,
            seed=self.seed,
            epoch=self._base.epoch,
            samples_seen=self._base.samples,
            order_seen=None if self.shows_all else self._order,
            **shard,
        )
        self._resume(stateful=resumes_itself(one))
        if self.on_load is not None:
            self.on_load(self._loader)
        return served(trainer, users, self._loader, shown(one, self._loader))

    def users_loader(self, *, in_form: bool = False) -> Any:
        """Returns the user's own loader; `in_form` with batches in the collection that it is the only one of."""
        users = self._load()
        one = only_loader(users)
        if not in_form or one is users:
            return one
        check_restrictable(one)
        return copied(one, collate_fn=InForm(one.collate_fn, users))

    def in_order(self) -> DataLoader[Any]:
        """Returns a loader over every sample once, in the order of the data set."""
        one = self.users_loader()
        check_restrictable(one)
        places, size = range(len(sampled_dataset(one))), drawing(one).batch_size  # type: ignore[arg-type]
        batches = BatchSampler(places, size, drop_last=False)
        return copied(one, sampler=places, batch_sampler=batches, batch_size=size, drop_last=False)

    def plain_dataloader(self) -> DataLoader[Any]:
        """Returns a loader over the kept samples for others than the Trainer; it changes nothing."""
        shard: dict[str, Any] = {} if self.trainer is None else _shard(self.trainer)
        return rebuild(
            self.users_loader(),
            kept=self._shown_kept,
            classes=self.classes,
            seed=self.seed,
            **shard,
        )

    @property
    def _shown_kept(self) -> Tensor | None:
        return None if self.shows_all else self.kept

    def serve(self, trainer: pl.Trainer) -> Callable[[], None]:
        """Serves the Trainer from here; returns the function that undoes it.

        It replaces where the Trainer gets its training loader, and nothing of the user's: others that call
        `train_dataloader()` of the module or data module get what the user wrote.
        """
        return replaced(trainer.fit_loop._data_source, "dataloader", self.train_dataloader)

    def show_all(self, trainer: pl.Trainer) -> Callable[[], None]:
        """Serves all samples until the Trainer trains; returns the function that undoes it.

        A fit that is resumed after the swap then plans its schedules, in `configure_optimizers`, for epochs as
        long as those that the first fit planned for. When it trains, an epoch that failed in its start begins anew.
        """
        self.shows_all, users = True, trainer.fit_loop.run

        def run() -> None:
            if self.shows_all:
                self.shows_all = False
                if self._loader is not None and self._built[0] is not self.kept:
                    self.request_reload(at_once=True)
            if trainer.fit_loop.restarting and is_at_epoch_start(trainer):
                begin_epoch(trainer)
                self._resumed = None
            users()

        return replaced(trainer.fit_loop, "run", run)

    @contextmanager
    def showing_all(self, batches: int) -> Iterator[None]:
        """Shows all samples, `batches` an epoch, as at fit start; the Trainer still trains on the kept ones."""
        loop, mine = self.attached.fit_loop, (self._loader, self._built)
        combined, length = loop._combined_loader, loop.max_batches
        self.shows_all = True
        try:
            loop._combined_loader, loop.max_batches = self.train_dataloader(), batches
            yield
        finally:
            self.shows_all, (self._loader, self._built) = False, mine
            loop._combined_loader, loop.max_batches = combined, length

    def strip_indices(self, trainer: pl.Trainer) -> Callable[[], None]:
        """Removes the indices from each batch before the user's hooks; returns the function that undoes it.

        It replaces the hook that the Trainer would call, and calls it.
        """
        owner: Any = trainer.lightning_module
        data = trainer.datamodule  # type: ignore[attr-defined]
        name = "on_before_batch_transfer"
        if data is not None and (is_overridden(name, data) or not is_overridden(name, owner)):
            owner = data
        users = getattr(owner, name)

        def on_before_batch_transfer(batch: Any, dataloader_idx: int) -> Any:
            if self._carries:
                batch, indexed = split(batch, nested=self._is_nested)
                if indexed is not None:
                    device = trainer.strategy.root_device
                    self.indices = indexed.indices.to(device, non_blocking=True)
            return users(batch, dataloader_idx)

        return replaced(owner, name, on_before_batch_transfer)

    @property
    def loader(self) -> DataLoader[Any]:
        """The Trainer's loader."""
        if self._loader is None:
            raise RuntimeError(
                "the Trainer has not asked for the training data yet: read what depends on it after "
                "the start of training."
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
        """N of the data set."""
        return len(self.sampler.dataset)  # type: ignore[arg-type]

    def num_batches(self, samples: int) -> int:
        """Returns the batches of one rank in an epoch over `samples` samples, before any limit."""
        return batches_in(self.loader, self.sampler.size_of(samples))

    def reset(self) -> None:
        """Resets the state of an earlier fit."""
        self.kept, self.indices, self._loader, self._fingerprint = None, None, None, None
        self.classes = None
        self.rewind()

    def rewind(self) -> None:
        """Starts a fit at its first batch, unless a checkpoint says where."""
        self._base, self._resumed, self._order = Position(), None, None

    def detach(self) -> None:
        """Serves plain batches again, for a wrapper that is later used without the callback."""
        self.carry_index, self.shows_all, self.on_load = False, False, None
        self._withdraw_request()  # of a fit that ended before the reload

    def keep(self, kept: Tensor) -> None:
        """Trains on `kept` (sorted int64 indices, each as often as an epoch draws it) from the next epoch on."""
        same_length = self.kept is not None and len(self.kept) == len(kept)
        self.kept = kept
        if same_length and self._loader is not None:
            self.sampler.keep(kept, self.classes)
        else:
            self.request_reload()

    def request_reload(self, *, at_once: bool = False) -> None:
        """Makes the Trainer call `train_dataloader()` at the start of the next epoch.

        With `at_once`, also if it has called it for that epoch already: the Trainer reloads when at least
        so many epochs have passed since the last time, and -1 always have.
        """
        trainer = self.attached
        if self._users_reload is None:
            self._users_reload = trainer.reload_dataloaders_every_n_epochs  # type: ignore[attr-defined]
        trainer.reload_dataloaders_every_n_epochs = -1 if at_once else 1  # type: ignore[attr-defined]

    def _withdraw_request(self) -> None:
        if self._users_reload is not None:
            self.attached.reload_dataloaders_every_n_epochs = self._users_reload  # type: ignore[attr-defined]
            self._users_reload = None

    def after_reload(self) -> None:
        """Restores the time of the last validation: at a reload the Trainer starts the clock of validations again."""
        if self._last_validation is not None:
            self.attached._last_val_time = self._last_validation  # type: ignore[attr-defined]
            self._last_validation = None

    def state_dict(self) -> dict[str, Any]:
        """Returns kept indices, epoch and position as CPU tensors and primitives."""
        at, batches = self._base, self._resumed
        if self.trainer is not None and self._loader is not None and batches is None:
            at, pending = now(self.trainer, self._loader, self._base)
            batches = {
                "batches": batches_of(self.trainer, self._loader),
                "done": progress(self.trainer),
                "pending": pending,
                "order": list(self.sampler.order_of_epoch) if at.samples else None,
            }
        return {
            **state_of(self.kept),
            "epoch": at.epoch,
            "batches_seen": at.batches,
            "samples_seen": at.samples,
            "resumed": batches,
            "fingerprint": self._fingerprint,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.kept = kept_in(state)
        # Older ones count batches alone: `train_dataloader` knows how many samples they are.
        self._base = Position(state["epoch"], state.get("samples_seen", -1), state["batches_seen"])
        found = state.get("resumed")
        self._resumed = found if found is not None and found["done"] else None
        self._order = None if found is None or found["order"] is None else tuple(found["order"])
        self._fingerprint = state["fingerprint"]
        if self._loader is not None:
            self._check_same_data(resumed=True)
            # Strategies that restore late (FSDP, DeepSpeed) have already built the loader, counted for
            # epoch 0, which may be the epoch to resume in. Tuners restore the start, which it was built for.
            kept, *place = self._built
            if (
                self.kept is not None
                or kept is not None
                or place != [self._base.epoch, self._base.samples]
                or self._resumed is not None
            ):
                self.request_reload(at_once=True)

    def _resume(self, *, stateful: bool) -> None:
        """Has the Trainer count the batches of the new loader from the position of the checkpoint."""
        before = self._resumed
        if before is None:
            return
        trainer = self.attached
        if is_to_move(trainer, self.loader, before):
            if self.shows_all or progress(trainer) != before["done"]:
                # Asked for before the Trainer restores its count, as to plan a schedule.
                self.request_reload(at_once=True)
                return
            self._base = resumed(trainer, self.loader, self._base, before, stateful=stateful)
        self._resumed = None

    def _check_same_data(self, *, resumed: bool) -> None:
        found = fingerprint(self.dataset)
        expected, self._fingerprint = self._fingerprint, found
        if expected is None:
            return
        before = "when the checkpoint was written" if resumed else "at the last reload"
        remedy = (
            "resume with the same data"
            if resumed
            else "let train_dataloader() return the same samples in the same order at every reload (after the "
            "warm-up, and with reload_dataloaders_every_n_epochs)"
        )
        if expected["length"] != found["length"]:
            raise ValueError(
                f"the training set has {found['length']} samples, and had {expected['length']} {before}, so indices "
                f"of samples refer to others than were observed: {remedy}."
            )
        if None in (expected["labels"], found["labels"]) or expected == found:
            return
        labels = labels_of(self.dataset)
        if labels is not None and is_label(labels, self.dataset):
            raise ValueError(
                f"the labels of the {found['length']} training samples are different from those {before}, so the data "
                f"or its order changed: {remedy}."
            )

    @property
    def attached(self) -> pl.Trainer:
        """The Trainer in use."""
        if self.trainer is None:
            raise RuntimeError("a TrainSource needs a Trainer: call trainer.fit() first.")
        return self.trainer


def _shard(trainer: pl.Trainer) -> dict[str, int]:
    """Returns the ranks that share an epoch and this one; nothing if the user disabled sharding."""
    wanted = getattr(trainer._accelerator_connector, "use_distributed_sampler", True)
    shard: dict[str, Any] | None = trainer.distributed_sampler_kwargs
    if not wanted or shard is None:
        return {}
    return {"num_replicas": shard["num_replicas"], "rank": shard["rank"]}
