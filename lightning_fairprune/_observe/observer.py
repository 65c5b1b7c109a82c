"""Reads logits and targets from the steps of a Trainer, with one capture for all callbacks."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Literal
from weakref import WeakKeyDictionary, ref

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_fairprune._model.answer import Answer, has_logits
from lightning_fairprune._model.borrowed import evaluating
from lightning_fairprune._model.capture import from_graph
from lightning_fairprune._model.compiled import is_compiled
from lightning_fairprune._model.first import FirstStep
from lightning_fairprune._model.losses import Seen, other_samples, plain
from lightning_fairprune._model.reading import Reading
from lightning_fairprune._observe.groups import LogitsFn
from lightning_fairprune._observe.late import LateCapture

# One for the steps of training and those of validation, so that an exception ends whichever is open.
_captures: WeakKeyDictionary[pl.Trainer, LateCapture] = WeakKeyDictionary()


def capture_of(trainer: pl.Trainer) -> LateCapture:
    """Returns the capture of a Trainer."""
    if trainer not in _captures:
        _captures[trainer] = LateCapture()
    return _captures[trainer]


def logits_fn_of(trainer: pl.Trainer) -> LogitsFn | None:
    """Returns the `logits_fn` of the callbacks of a Trainer: one of them has it for all."""
    found: list[LogitsFn] = []
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        function = getattr(getattr(callback, "settings", None), "logits_fn", None)
        if function is not None and function not in found:
            found.append(function)
    if len(found) > 1:
        raise ValueError(
            f"`logits_fn` is one for all callbacks of a Trainer, but {len(found)} are given: pass the same to all, "
            "or to one alone."
        )
    return found[0] if found else None


class StepObserver:
    """Reads logits and targets of steps: by `logits_fn`, or where the first step shows them.

    The first step of each `kind` is observed whole, the others only where the first one had its answer.
    """

    def __init__(self, trainer: pl.Trainer) -> None:
        self._capture = capture_of(trainer)
        self._logits_fn = logits_fn_of(trainer)
        self._open = False
        self._own: Seen | None = None
        self._first: FirstStep | None = None
        self._batch: Any = None
        self._kind: Hashable = None
        self._readings: dict[Hashable, Reading] = {}
        self._module: ref[pl.LightningModule] | None = None
        self._is_compiled = False

    def open(
        self,
        module: pl.LightningModule,
        batch: Any,
        batch_idx: int | None = None,
        kind: Hashable = None,
    ) -> None:
        """Starts before a step; `batch_idx` is None in training."""
        if self._logits_fn is not None:
            # Before the step, which may change the weights.
            with torch.no_grad(), evaluating(module):
                self._own = Seen(*self._logits_fn(module, batch))
            return
        if self._module is None or self._module() is not module:
            self._module, self._readings = ref(module), {}
            self._is_compiled = is_compiled(module)
        self._open, self._batch, self._kind = True, batch, kind
        reading = self._readings.get(kind)
        if reading is not None and not reading.answer.by_loss:
            reading.enter()
            self._capture.within.callback(reading.leave)
            return
        if batch_idx is None:
            self._capture.enter()
        else:
            self._capture.begin(batch_idx)
        if reading is None and not self._is_compiled:
            self._first = FirstStep(module, batch, self._capture)
            self._first.enter()
            self._capture.within.callback(self._first.leave)

    def close(self) -> None:
        """Stops after the forward pass; safe to call more than once."""
        if self._open:
            self._open = False
            self._capture.leave()

    def abandon(self) -> None:
        """Stops observing after an exception, and forgets the step."""
        self.close()
        self._first = self._batch = self._own = None

    @property
    def saw_nothing(self) -> bool:
        """Whether the last step computed no loss that could be observed."""
        if self._own is not None:
            return False
        if self._first is not None:
            return self._first.saw_nothing
        reading = self._readings.get(self._kind)
        if reading is not None and not reading.answer.by_loss:
            return reading.saw_nothing
        return not self._capture.noted

    def read(self, outputs: Any, batch_size: int | None, where: str) -> Seen:
        """Returns logits [B, C, ...] and target of the last step."""
        self.close()
        first, batch, own = self._first, self._batch, self._own
        self._first = self._batch = self._own = None
        reading = self._readings.get(self._kind)
        try:
            if own is not None:
                seen = own
            elif first is not None:
                found = first.answer(outputs, batch_size)
                seen = checked(found.seen, batch_size)
                self._readings[self._kind] = Reading(found)
            elif reading is not None and not reading.answer.by_loss:
                seen = reading.read(outputs, batch)
            elif has_logits(outputs):
                seen = Seen(outputs["logits"], outputs["target"])
            else:
                seen = Seen(*self._capture.pick(batch_size))
            return checked(seen, batch_size)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None

    def name(self, kind: Hashable = None) -> str:
        """What the steps of a kind predict, in words."""
        found = self.answer(kind)
        return "what the loss is given" if found is None else found.name

    def answer(self, kind: Hashable = None) -> Answer | None:
        """What the first step of a kind showed."""
        found = self._readings.get(kind)
        return None if found is None else found.answer


class TrainingObserver(StepObserver):
    """Learns from the first training step the cheapest way to the logits of the others.

    A step that returns them is not observed. If the graph of the loss shows the same loss as the
    function mode, the graph is enough: the mode costs microseconds at each of the hundreds of functions
    that a deep network calls, the graph a few microseconds in total.
    """

    def __init__(self, trainer: pl.Trainer) -> None:
        super().__init__(trainer)
        self._graph: tuple[Tensor, Tensor] | None = None
        self._way: Literal["any", "outputs", "graph", "mode", "reading"] = (
            "any" if self._logits_fn is None else "mode"
        )

    def open(
        self,
        module: pl.LightningModule,
        batch: Any,
        batch_idx: int | None = None,
        kind: Hashable = None,
    ) -> None:
        """Starts before a step."""
        self._graph = None
        if self._way in ("any", "mode", "reading"):
            super().open(module, batch)

    def look(self, loss: Tensor, batch_size: int) -> None:
        """Reads the graph between forward and backward pass; the first of several losses counts."""
        if self._graph is None and self._way in ("any", "graph"):
            self._graph = from_graph(loss, batch_size)

    @property
    def saw_nothing(self) -> bool:
        """Whether the last step computed no loss that could be observed."""
        if self._way != "graph":
            return super().saw_nothing
        if self._graph is None:
            self._way = "mode"  # from the next batch on
        return self._graph is None

    def read_step(self, outputs: Any, batch_size: int) -> Seen | None:
        """Returns logits and target; None for a step that differs from the first one."""
        self.close()
        if self._way == "graph":
            return None if self.saw_nothing or self._graph is None else Seen(*self._graph)
        seen = self.read(outputs, batch_size, "training_step")
        if self._way == "any":
            found = self.answer()
            if found is None:
                self._way = "outputs" if has_logits(outputs) else "mode"
            elif found.by_loss:
                self._way = "mode"
            else:
                self._way = "outputs" if found.returned is not None else "reading"
            if self._way == "mode" and self._graph is not None and _same(self._graph, seen):
                # In the first step too, so that a resumed fit records the same bits.
                self._way, seen = "graph", Seen(*self._graph)
        return seen


def checked(seen: Seen, batch_size: int | None) -> Seen:
    """Returns plain logits [B, C, ...] and target [B, ...]; raises for anything else."""
    logits, target, per_label, mixed = seen
    if not isinstance(logits, Tensor) or not isinstance(target, Tensor):
        raise ValueError(
            f"logits and targets must be tensors, got {type(logits).__name__} and "
            f"{type(target).__name__}: return those that the loss is given, or pass `logits_fn`."
        )
    flat = logits.ndim == 2 and target.ndim == 1
    whole = logits.ndim > 2 and logits.shape[:1] + logits.shape[2:] == target.shape
    fits = flat or whole or (per_label and logits.shape == target.shape)
    if not fits or target.is_floating_point():
        raise ValueError(
            f"logits must be [B, C] and targets one class index per sample, got "
            f"{list(logits.shape)} and {target.dtype} {list(target.shape)}; soft and "
            "multi-label targets have no class to balance: give class indices, or pass `logits_fn`."
        )
    if not logits.is_floating_point():
        raise ValueError(
            f"logits must be floating, got {logits.dtype}: return what the softmax is given."
        )
    expected = len(target) if batch_size is None else batch_size
    if len(logits) == len(target) != expected:
        raise ValueError(other_samples(len(logits), expected))
    if not len(logits) == len(target) == expected:
        raise ValueError(
            f"logits and targets must be of the {expected} samples of the batch, got "
            f"{len(logits)} and {len(target)}: return those of every sample, in order."
        )
    return Seen(plain(logits), plain(target), per_label, mixed)


def _same(graph: tuple[Tensor, Tensor], called: Seen) -> bool:
    """Whether graph and call show the same loss; waits for the device, once a fit."""
    (found, found_target), (logits, target, *_) = graph, called
    if found.shape != logits.shape or not torch.equal(found_target, target):
        return False
    same = torch.allclose(found.float(), logits.float().log_softmax(1), atol=1e-3, equal_nan=True)
    return bool(same)
