"""Batches of the training loader for a criterion, without changing the loader's state."""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_fairprune._lightning.kinds import lightning_class
from lightning_fairprune._lightning.outside_fit import to_device
from lightning_fairprune._loading.index import IndexedBatch


def pairs(
    trainer: pl.Trainer, module: pl.LightningModule, loader: Any, count: int, draw: int
) -> Iterator[tuple[Any, None]]:
    """Yields ``((batch, batch_idx), None)``, on the device as in a training step."""
    for batch_idx, batch in enumerate(_first(trainer, loader, count, draw)):
        yield (to_device(module, batch), batch_idx), None


def example(trainer: pl.Trainer, module: pl.LightningModule, loader: Any, draw: int) -> Any:
    """Returns an input of the model: its own example, or the first tensor of a batch."""
    own = module.example_input_array
    if own is not None:
        return module._apply_batch_transfer_handler(own)
    batch = to_device(module, _first(trainer, loader, 1, draw)[0])
    first = batch[0] if isinstance(batch, tuple | list) and batch else batch
    if not isinstance(first, Tensor) or not first.is_floating_point():
        raise ValueError(
            "the criterion needs an input of the model, and the first element of a batch is "
            f"{type(first).__name__}, not a float tensor: set `example_input_array` of the module."
        )
    return first[:1]


def _first(trainer: pl.Trainer, loader: Any, count: int, draw: int) -> list[Any]:
    """Returns the first batches of an epoch of seed `draw`.

    The caller restores the random states with `isolated_rng`.
    """
    torch.manual_seed(draw)
    random.seed(draw)
    np.random.seed(draw % 2**32)  # noqa: NPY002 - what augmentations use
    with ExitStack() as stack:
        training: Any = trainer.train_dataloader
        combines = lightning_class(training, "CombinedLoader") is not None
        if loader is None and (combines or isinstance(training, Mapping | list | tuple)):
            tree = training.iterables if combines else training
            combined = trainer.fit_loop._combined_loader
            mode = "max_size_cycle" if combined is None else combined._mode
            many = CombinedLoader(_mapped(lambda one: _again(stack, one, draw), tree), mode)
            batches = [batch for batch, _, _ in itertools.islice(iter(many), count)]
        else:
            again = _again(stack, training if loader is None else loader, draw)
            batches = list(itertools.islice(iter(again), count))
    if not batches:
        raise ValueError(
            "the loader must give at least one batch for the criterion, it gave none: check `dataloader`, "
            "limit_train_batches and drop_last."
        )
    return [batch.batch if isinstance(batch, IndexedBatch) else batch for batch in batches]


def _mapped(function: Callable[[Any], Any], tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {key: _mapped(function, value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_mapped(function, value) for value in tree]
    return function(tree)


def _again(stack: ExitStack, loader: Any, draw: int) -> Any:
    """Returns a second reader of a loader; `stack` restores its samplers and generators."""
    if isinstance(loader, Iterator):
        raise TypeError(
            f"a {type(loader).__name__} can be read only once, so the criterion would take batches from "
            "training: give the criterion its own `dataloader`."
        )
    if not isinstance(loader, DataLoader):
        return loader
    again = copy.copy(loader)
    again._iterator = None  # its persistent workers serve the running epoch
    batch_sampler: Any = loader.batch_sampler
    samplers: list[Any] = [loader.sampler, batch_sampler, getattr(batch_sampler, "sampler", None)]
    for sampler in {id(s): s for s in samplers if s is not None}.values():
        if hasattr(sampler, "set_epoch") and hasattr(sampler, "epoch"):
            stack.callback(setattr, sampler, "epoch", sampler.epoch)
            sampler.epoch = -1 - draw  # no epoch of training, so there is no position to resume at
    found = [loader.generator, *(getattr(sampler, "generator", None) for sampler in samplers)]
    generators = [g for g in found if isinstance(g, torch.Generator)]
    for generator in {id(g): g for g in generators}.values():
        stack.callback(generator.set_state, generator.get_state())
        generator.manual_seed(draw)
    return again
