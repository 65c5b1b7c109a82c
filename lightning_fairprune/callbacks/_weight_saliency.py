"""What a criterion is called with: the user's own loss, and batches as the training loader gives them."""

from __future__ import annotations

import copy
import inspect
import itertools
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_fairprune import criteria
from lightning_fairprune._quiet import to_device, undisturbed
from lightning_fairprune.loader import IndexedBatch

__all__ = ["LossFn", "check_criterion", "reads_batches", "saliency"]

# Not a Tensor, which jsonargparse would try to build.
LossFn = Callable[[pl.LightningModule, Any], Any]


def _parameters(criterion: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(criterion).parameters


def reads_batches(criterion: Callable[..., Any]) -> bool:
    """Whether a criterion is given batches and a loss."""
    return "batches" in _parameters(criterion)


def check_criterion(
    criterion: Callable[..., Any], module: pl.LightningModule, loss_fn: LossFn | None
) -> None:
    """Raises, before any work, if the criterion could not be called."""
    if not reads_batches(criterion) or loss_fn is not None:
        return
    name = getattr(criterion, "__name__", repr(criterion))
    if not module.automatic_optimization:
        raise ValueError(
            f"the criterion `{name}` needs one loss of a batch, and with manual optimisation a "
            "training_step may have any: give `loss_fn`, (module, batch) -> loss, or a criterion that "
            "needs no gradient, such as criteria.magnitude."
        )
    if "dataloader_iter" in inspect.signature(module.training_step).parameters:
        raise TypeError(
            f"the criterion `{name}` calls training_step with batches, but "
            "`training_step(dataloader_iter)` fetches its own: give `loss_fn`, (module, batch) -> loss."
        )


def saliency(
    criterion: Callable[..., Any],
    trainer: pl.Trainer,
    module: pl.LightningModule,
    names: tuple[str, ...],
    *,
    masks: dict[str, Tensor],
    sparsity: float,
    dataloader: Any,
    num_batches: int,
    loss_fn: LossFn | None,
    seed: int,
    draw: int,
) -> dict[str, Tensor]:
    """Calls a criterion with what it has parameters for, and returns what it found for `names`.

    Args:
        criterion: a function of :mod:`lightning_fairprune.criteria` or one like it.
        trainer: of the fit.
        module: whose weights.
        names: of the parameters to score.
        masks: so far.
        sparsity: the target, for criteria that make masks themselves.
        dataloader: where batches come from; None for the training loader.
        num_batches: how many at most, on each rank.
        loss_fn: ``(module, batch) -> loss``; None for that of ``training_step``.
        seed: of chance as a criterion.
        draw: a number that differs from pruning to pruning, by which batches are drawn.
    """
    wanted = _parameters(criterion)
    offered: dict[str, Any] = {
        "parameters": names,
        "seed": seed,
        "masks": masks or None,
        "sparsity": sparsity,
    }
    if "weight_decay" in wanted:
        offered["weight_decay"] = _weight_decay(trainer, module)
    given = criterion.keywords if isinstance(criterion, partial) else {}
    options = {k: v for k, v in offered.items() if k in wanted and k not in given}
    with isolate_rng():
        if "batches" in wanted:
            batches = _pairs(trainer, module, dataloader, num_batches, draw)
            with _loss_as_model(trainer, module, loss_fn):
                found = criterion(module, batches, lambda loss, _: loss, **options)
        elif "example_input" in wanted:
            found = criterion(module, _example(trainer, module, dataloader, draw), **options)
        else:
            found = criterion(module, **options)
    return _checked(criterion, found, names)


def _weight_decay(trainer: pl.Trainer, module: pl.LightningModule) -> dict[str, float]:
    found = [criteria.weight_decay_of(module, optimizer) for optimizer in trainer.optimizers]
    return {name: max(each[name] for each in found) for name in found[0]}


def _checked(
    criterion: Callable[..., Any], found: Any, names: tuple[str, ...]
) -> dict[str, Tensor]:
    if not isinstance(found, Mapping) or any(name not in found for name in names):
        missing = (
            list(names) if not isinstance(found, Mapping) else [n for n in names if n not in found]
        )
        raise ValueError(
            f"`criterion` {getattr(criterion, '__name__', repr(criterion))} must return a saliency for "
            f"each parameter that is pruned, there is none for {', '.join(missing)}."
        )
    return {name: found[name] for name in names}


# ------------------------------------------------------------------------------------------- the loss


@contextmanager
def _loss_as_model(
    trainer: pl.Trainer, module: pl.LightningModule, loss_fn: LossFn | None
) -> Iterator[None]:
    """Makes ``module(batch, batch_idx)`` return the loss of the training step, and nothing be logged."""
    own, loggers = vars(module), trainer.loggers
    # A module that was compiled in place would compile this, too.
    patched = ("forward", "_compiled_call_impl")
    before = {name: own[name] for name in patched if name in own}

    def unpatch() -> None:
        for name in patched:
            own.pop(name, None)
        own.update(before)

    def patch() -> None:
        own["forward"], own["_compiled_call_impl"] = loss_of, None

    def loss_of(batch: Any, batch_idx: int) -> Tensor:
        unpatch()  # the step may well call `self(x)`
        try:
            return _loss(module, batch, batch_idx, loss_fn)
        finally:
            patch()

    with ExitStack() as stack:
        stack.enter_context(undisturbed(module))
        stack.callback(setattr, trainer, "loggers", loggers)
        trainer.loggers = [DummyLogger()]
        stack.callback(unpatch)
        patch()
        yield


def _loss(module: pl.LightningModule, batch: Any, batch_idx: int, loss_fn: LossFn | None) -> Tensor:
    if loss_fn is not None:
        out = loss_fn(module, batch)
    else:
        named = inspect.signature(module.training_step).parameters
        out = module.training_step(batch, *((batch_idx,) if len(named) > 1 else ()))
    loss = out.get("loss") if isinstance(out, Mapping) else out
    if not isinstance(loss, Tensor):
        source = "training_step" if loss_fn is None else "`loss_fn`"
        raise ValueError(
            f"{source} must return a loss for the criterion, it returned {type(out).__name__} for batch "
            f"{batch_idx}: give `loss_fn`, (module, batch) -> loss."
        )
    return loss


# ------------------------------------------------------------------------------------------ the batches


def _pairs(
    trainer: pl.Trainer, module: pl.LightningModule, loader: Any, count: int, draw: int
) -> Iterator[tuple[Any, None]]:
    """Yields ``((batch, batch_idx), None)``, brought to the device as for a training step."""
    for batch_idx, batch in enumerate(_first(trainer, loader, count, draw)):
        yield (to_device(module, batch), batch_idx), None


def _example(trainer: pl.Trainer, module: pl.LightningModule, loader: Any, draw: int) -> Any:
    """Returns an input of the model: its own example, or the first tensor of a batch."""
    example = module.example_input_array
    if example is not None:
        return module._apply_batch_transfer_handler(example)
    batch = to_device(module, _first(trainer, loader, 1, draw)[0])
    first = batch[0] if isinstance(batch, tuple | list) and batch else batch
    if not isinstance(first, Tensor) or not first.is_floating_point():
        raise ValueError(
            "the criterion needs an input of the model, and the first element of a batch is "
            f"{type(first).__name__}, no tensor of floats: set `example_input_array` of the module."
        )
    return first[:1]


def _first(trainer: pl.Trainer, loader: Any, count: int, draw: int) -> list[Any]:
    """Returns the first batches of an epoch that `draw` numbers, and leaves the loader as it is.

    Random states are seeded here; `isolate_rng` puts them back.
    """
    torch.manual_seed(draw)
    random.seed(draw)
    np.random.seed(draw % 2**32)  # noqa: NPY002 - what augmentations use
    with ExitStack() as stack:
        training = trainer.train_dataloader
        if loader is None and isinstance(training, Mapping | list | tuple | CombinedLoader):
            tree = training.iterables if isinstance(training, CombinedLoader) else training
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
    """Returns a second reader of the same loader, with samplers at an epoch of their own.

    Undone by `stack`, which the caller closes after it has read.
    """
    if isinstance(loader, Iterator):
        raise TypeError(
            f"a {type(loader).__name__} can be read only once, so the criterion would take batches from "
            "training: give the criterion a `dataloader` of its own."
        )
    if not isinstance(loader, DataLoader):
        return loader
    again = copy.copy(loader)
    again._iterator = None  # persistent workers are those of the running epoch
    batch_sampler: Any = loader.batch_sampler
    samplers: list[Any] = [loader.sampler, batch_sampler, getattr(batch_sampler, "sampler", None)]
    for sampler in {id(s): s for s in samplers if s is not None}.values():
        if hasattr(sampler, "set_epoch") and hasattr(sampler, "epoch"):
            stack.callback(setattr, sampler, "epoch", sampler.epoch)
            # No epoch of training has this number, nor a position to be resumed at.
            sampler.epoch = -1 - draw
    for generator in {
        id(g): g for g in (loader.generator, *map(_generator, samplers)) if g
    }.values():
        stack.callback(generator.set_state, generator.get_state())
        generator.manual_seed(draw)
    return again


def _generator(sampler: Any) -> torch.Generator | None:
    found = getattr(sampler, "generator", None)
    return found if isinstance(found, torch.Generator) else None
