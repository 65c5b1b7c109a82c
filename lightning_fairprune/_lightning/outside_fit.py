"""Running a user's model outside its training loop, without side effects."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor, nn

from lightning_fairprune._lightning.kinds import is_module, is_overridden
from lightning_fairprune._model.answer import Answer, has_logits
from lightning_fairprune._model.borrowed import State, borrowed, device_of
from lightning_fairprune._model.capture import LossCapture
from lightning_fairprune._model.compiled import is_compiled
from lightning_fairprune._model.first import FirstStep
from lightning_fairprune._model.losses import Seen, plain
from lightning_fairprune._model.reading import Reading


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[State]:
    """Borrows the model; meanwhile, a LightningModule logs nothing and its Trainer is validating."""
    with ExitStack() as stack:
        if is_module(model):
            stack.enter_context(_validating(model))
        for part in list(model.modules()):
            if is_module(part):
                stack.enter_context(_silent(part))
        yield stack.enter_context(borrowed(model))


@contextmanager
def _silent(model: pl.LightningModule) -> Iterator[None]:
    names = ("log", "log_dict")
    before = {name: model.__dict__[name] for name in names if name in model.__dict__}
    for name in names:
        model.__dict__[name] = lambda *_, **__: None
    try:
        yield
    finally:
        for name in names:
            del model.__dict__[name]
        model.__dict__.update(before)


@contextmanager
def _validating(model: pl.LightningModule) -> Iterator[None]:
    """Sets the state of the Trainer, which hooks that augment batches on the device read."""
    trainer = model._trainer
    if trainer is None:
        yield
        return
    stage, loggers = trainer.state.stage, trainer.loggers
    trainer.validating = True
    trainer.loggers = [DummyLogger() for _ in loggers]  # for steps that write to them directly
    try:
        with trainer.precision_plugin.val_step_context():
            yield
    finally:
        trainer.state.stage, trainer.loggers = stage, loggers


def to_device(model: nn.Module, batch: Any) -> Any:
    """Returns a batch of a loader as the steps of the model receive it."""
    if not is_module(model):
        return move_data_to_device(batch, device_of(model))
    if model._trainer is not None:
        batch = model._trainer.precision_plugin.convert_input(batch)
    return model._apply_batch_transfer_handler(model._on_before_batch_transfer(batch))


def logits_of(model: nn.Module) -> Callable[[Any, Any], tuple[Tensor, Tensor]]:
    """Returns ``(model, batch) -> (logits [B, C], target [B])`` for any model.

    A LightningModule runs its validation step, which neither augments nor optimises, or else its training
    step. Any other module is called with the first of two elements.
    """
    if not is_module(model):
        return _called
    if is_overridden("validation_step", model):
        name = "validation_step"
    elif is_overridden("training_step", model) and model.automatic_optimization:
        name = "training_step"
    else:
        raise ValueError(
            f"{type(model).__name__} must have a validation_step, or a training_step with automatic "
            "optimisation, to find logits and targets in: pass `logits_fn`."
        )
    return _Step(name)


def _called(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise ValueError(
            f"the loader must yield pairs (input, target), got {type(batch).__name__}"
            f"{f' of {len(batch)}' if isinstance(batch, tuple | list) else ''}: pass `logits_fn`."
        )
    logits = model(batch[0])
    return logits, batch[1]


class _Step:
    """Reads logits and target of a step; the first batch shows where they are."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._answer: Answer | None = None
        self._reading: Reading | None = None

    def __call__(self, module: Any, batch: Any) -> tuple[Tensor, Tensor]:
        step = getattr(module, self._name)
        first, rest = _zeros(step)
        capture, begun = LossCapture(), None
        with ExitStack() as watching:
            if self._reading is not None:
                self._reading.enter()
                watching.callback(self._reading.leave)
            else:
                capture.enter()
                watching.callback(capture.leave)
            if self._answer is None and not is_compiled(module):
                begun = FirstStep(module, batch, capture)
                begun.enter()
                watching.callback(begun.leave)
            outputs = step(batch, *first, **rest)
        try:
            logits, target, *_ = self._seen(capture, begun, outputs, batch)
        except ValueError as error:
            raise ValueError(f"{self._name}: {error}") from None
        return logits, target

    def _seen(
        self, capture: LossCapture, begun: FirstStep | None, outputs: Any, batch: Any
    ) -> Seen:
        if self._reading is not None:
            return self._reading.read(outputs, batch)
        if begun is not None:
            self._answer = found = begun.answer(outputs)
            self._reading = None if found.by_loss else Reading(found)
            return found.seen
        if has_logits(outputs):
            return Seen(plain(outputs["logits"]), plain(outputs["target"]))
        return Seen(*capture.pick())


def _zeros(step: Callable[..., Any]) -> tuple[list[int], dict[str, int]]:
    """Returns zeros for the arguments of a step after the batch: indices under any names."""
    named = list(inspect.signature(step).parameters.values())
    places = [p for p in named if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)][1:]
    wanted = [p for i, p in enumerate(places) if i == 0 or p.default is p.empty]
    first = [0] * len(wanted)
    if not places and any(p.kind is p.VAR_POSITIONAL for p in named):
        first = [0]
    rest = [p.name for p in named if p not in wanted and p.name in ("batch_idx", "dataloader_idx")]
    return first, dict.fromkeys(rest, 0)
