"""Calls a criterion inside a fit, with the loss of the user's own training step."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor

from lightning_fairprune import criteria
from lightning_fairprune._lightning.outside_fit import undisturbed
from lightning_fairprune._model.borrowed import borrowed, isolated_rng
from lightning_fairprune._observe.groups import GroupBy, groups_of
from lightning_fairprune.callbacks._weights.batches import example, pairs
from lightning_fairprune.callbacks._weights.settings import LossFn, WeightSettings
from lightning_fairprune.records.settings import name_of

# Parameters of a criterion that the callback fills in, besides the model as the first one.
_OFFERED = {"batches", "loss_fn", "example_input", "parameters", "seed", "masks", "sparsity"}
_OFFERED |= {"weight_decay", "groups"}


def reads_batches(criterion: Callable[..., Any]) -> bool:
    """Whether a criterion reads batches and their loss."""
    return "batches" in inspect.signature(criterion).parameters


def check_criterion(settings: WeightSettings, module: pl.LightningModule) -> None:
    """Raises if the criterion cannot be called in this fit."""
    criterion, options = settings.criterion, settings.criterion_options
    name = name_of(criterion)
    if getattr(criterion, "func", criterion) is criteria.fairprune:
        raise ValueError(
            "`fairprune` needs the outputs for each sample, and the callback has the loss of a step: "
            "score with it outside of training, or use criteria.fairgrape_masks."
        )
    _, *others = inspect.signature(criterion).parameters.values()
    several = any(p.kind is p.VAR_KEYWORD for p in others)
    for option in options:
        if option not in [p.name for p in others] and not several:
            raise ValueError(
                f"`criterion_options` has {option!r}, which is not a parameter of `{name}`; it has "
                f"{', '.join(p.name for p in others)}."
            )
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    for p in others:
        needs = p.name
        if p.default is p.empty and p.kind not in variable and needs not in {*_OFFERED, *options}:
            raise ValueError(
                f"the criterion `{name}` needs `{needs}`: give criterion_options={{{needs!r}: ...}}."
            )
    if not reads_batches(criterion) or settings.loss_fn is not None:
        return
    if not module.automatic_optimization:
        raise ValueError(
            f"the criterion `{name}` needs one loss of a batch, and with manual optimisation a "
            "training_step may compute several: give `loss_fn`, (module, batch) -> loss, or a criterion that "
            "needs no gradient, such as criteria.magnitude."
        )
    if "dataloader_iter" in inspect.signature(module.training_step).parameters:
        raise TypeError(
            f"the criterion `{name}` calls training_step with batches, but "
            "`training_step(dataloader_iter)` fetches its own: give `loss_fn`, (module, batch) -> loss."
        )


def saliency(
    settings: WeightSettings,
    trainer: pl.Trainer,
    module: pl.LightningModule,
    names: tuple[str, ...],
    *,
    masks: dict[str, Tensor],
    sparsity: float,
    draw: int,
) -> dict[str, Tensor]:
    """Calls the criterion with the arguments that it takes, and returns the saliencies of `names`.

    `sparsity` is the target, for criteria that make masks themselves; `draw` seeds the choice of
    batches and differs from pruning to pruning.
    """
    criterion, options = settings.criterion, settings.criterion_options
    wanted = inspect.signature(criterion).parameters
    offered: dict[str, Any] = {
        "parameters": names,
        "seed": settings.seed,
        "masks": masks or None,
        "sparsity": sparsity,
        "groups": partial(_groups, settings.group_by),
    }
    if "weight_decay" in wanted:
        offered["weight_decay"] = _weight_decay(trainer, module)
    given = criterion.keywords if isinstance(criterion, partial) else {}
    named = {k: v for k, v in offered.items() if k in wanted and k not in given} | dict(options)
    with isolated_rng():
        if "batches" in wanted:
            batches = pairs(trainer, module, settings.dataloader, settings.num_batches, draw)
            with _loss_as_model(trainer, module, settings.loss_fn):
                found = criterion(module, batches, lambda loss, _: loss, **named)
        elif "example_input" in wanted:
            with borrowed(module):
                found = criterion(
                    module, example(trainer, module, settings.dataloader, draw), **named
                )
        else:
            found = criterion(module, **named)
    return _checked(criterion, module, found, names)


def _weight_decay(trainer: pl.Trainer, module: pl.LightningModule) -> dict[str, float]:
    found = [criteria.weight_decay_of(module, optimizer) for optimizer in trainer.optimizers]
    return {name: max(each[name] for each in found) for name in found[0]}


def _groups(group_by: GroupBy | None, raw: Any) -> Tensor:
    """Returns the group of each sample in an item of `pairs`; by default its class."""
    (batch, _), _ = raw
    if group_by is None:
        if not isinstance(batch, tuple | list) or len(batch) < 2:
            raise ValueError(
                "the criterion needs the group of each sample, and a batch is not a pair (input, class): "
                "give `group_by`."
            )
        group_by = 1
    found = groups_of(batch, group_by)
    assert found is not None
    return found


def _checked(
    criterion: Callable[..., Any], module: pl.LightningModule, found: Any, names: tuple[str, ...]
) -> dict[str, Tensor]:
    parameters = dict(module.named_parameters())
    for name in names:
        value = found.get(name) if isinstance(found, Mapping) else None
        shape = parameters[name].shape
        if not isinstance(value, Tensor) or value.shape != shape:
            got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"`criterion` {name_of(criterion)} must return a saliency for each parameter that is "
                f"pruned, in its shape: `{name}` is {list(shape)} and got {got}."
            )
    return {name: found[name] for name in names}


@contextmanager
def _loss_as_model(
    trainer: pl.Trainer, module: pl.LightningModule, loss_fn: LossFn | None
) -> Iterator[None]:
    """Makes ``module(batch, batch_idx)`` return the loss of the training step, without logging."""
    own, loggers = vars(module), trainer.loggers
    # The second is what a module that was compiled in place calls.
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
