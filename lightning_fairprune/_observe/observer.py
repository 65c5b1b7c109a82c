"""Reads logits and targets from the steps of a Trainer, with one capture for all callbacks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal
from weakref import WeakKeyDictionary

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_fairprune._model.borrowed import evaluating
from lightning_fairprune._model.capture import from_graph
from lightning_fairprune._observe.groups import LogitsFn
from lightning_fairprune._observe.late import LateCapture

# One for the steps of training and those of validation, so that an exception ends whichever is open.
_captures: WeakKeyDictionary[pl.Trainer, LateCapture] = WeakKeyDictionary()


def capture_of(trainer: pl.Trainer) -> LateCapture:
    """Returns the capture of a Trainer."""
    if trainer not in _captures:
        _captures[trainer] = LateCapture()
    return _captures[trainer]


class StepObserver:
    """Reads logits and targets of steps: by `logits_fn`, from their outputs, or from their loss."""

    def __init__(self, trainer: pl.Trainer, logits_fn: LogitsFn | None = None) -> None:
        self._capture = capture_of(trainer)
        self._logits_fn = logits_fn
        self._open = False
        self._own: tuple[Tensor, Tensor] | None = None

    def open(self, module: pl.LightningModule, batch: Any, batch_idx: int | None = None) -> None:
        """Starts before a step; `batch_idx` is None in training."""
        if self._logits_fn is not None:
            # Before the step, which may change the weights.
            with torch.no_grad(), evaluating(module):
                self._own = self._logits_fn(module, batch)
            return
        if batch_idx is None:
            self._capture.enter()
        else:
            self._capture.begin(batch_idx)
        self._open = True

    def close(self) -> None:
        """Stops after the forward pass; safe to call more than once."""
        if self._open:
            self._open = False
            self._capture.leave()

    @property
    def saw_nothing(self) -> bool:
        """Whether the last step computed no loss that could be observed."""
        return self._own is None and not self._capture.noted

    def read(self, outputs: Any, batch_size: int | None, where: str) -> tuple[Tensor, Tensor]:
        """Returns logits [B, C] and target [B] of the last step."""
        self.close()
        if self._own is not None:
            (logits, target), self._own = self._own, None
        elif _has_logits(outputs):
            logits, target = outputs["logits"], outputs["target"]
        else:
            try:
                return self._capture.pick(batch_size)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None
        if not isinstance(logits, Tensor) or not isinstance(target, Tensor):
            raise ValueError(
                f"{where}: logits and targets must be tensors, got {type(logits).__name__} and "
                f"{type(target).__name__}: return those that the loss is given, or pass `logits_fn`."
            )
        if logits.ndim != 2 or target.ndim != 1 or target.is_floating_point():
            raise ValueError(
                f"{where}: logits must be [B, C] and targets one class index per sample, got "
                f"{list(logits.shape)} and {target.dtype} {list(target.shape)}; soft and "
                "multi-label targets have no class to balance: give class indices, or pass `logits_fn`."
            )
        if not logits.is_floating_point():
            raise ValueError(
                f"{where}: logits must be floating, got {logits.dtype}: return what the softmax is given."
            )
        expected = len(target) if batch_size is None else batch_size
        if not len(logits) == len(target) == expected:
            raise ValueError(
                f"{where}: logits and targets must be of the {expected} samples of the batch, got "
                f"{len(logits)} and {len(target)}: return those of every sample, in order."
            )
        return logits.detach(), target.detach()


class TrainingObserver(StepObserver):
    """Learns from the first training step the cheapest way to the logits of the others.

    A step that returns them is not observed. If the graph of the loss shows the same loss as the
    function mode, the graph is enough: the mode costs microseconds at each of the hundreds of functions
    that a deep network calls, the graph a few microseconds in total.
    """

    def __init__(self, trainer: pl.Trainer, logits_fn: LogitsFn | None = None) -> None:
        super().__init__(trainer, logits_fn)
        self._graph: tuple[Tensor, Tensor] | None = None
        self._way: Literal["any", "outputs", "graph", "mode"] = (
            "any" if logits_fn is None else "mode"
        )

    def open(self, module: pl.LightningModule, batch: Any, batch_idx: int | None = None) -> None:
        """Starts before a step."""
        self._graph = None
        if self._way in ("any", "mode"):
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

    def read_step(self, outputs: Any, batch_size: int) -> tuple[Tensor, Tensor] | None:
        """Returns logits and target; None for a step that differs from the first one."""
        self.close()
        if self._way == "graph":
            return None if self.saw_nothing else self._graph
        seen = self.read(outputs, batch_size, "training_step")
        if self._way == "any":
            self._way = "outputs" if _has_logits(outputs) else "mode"
            if self._way == "mode" and self._graph is not None and _alike(self._graph, seen):
                # In the first step too, so that a resumed fit records the same bits.
                self._way, seen = "graph", self._graph
        return seen


def _has_logits(outputs: Any) -> bool:
    return isinstance(outputs, Mapping) and {"logits", "target"} <= outputs.keys()


def _alike(graph: tuple[Tensor, Tensor], called: tuple[Tensor, Tensor]) -> bool:
    """Whether graph and call show the same loss; waits for the device, once a fit."""
    (found, found_target), (logits, target) = graph, called
    if found.shape != logits.shape or not torch.equal(found_target, target):
        return False
    same = torch.allclose(found.float(), logits.float().log_softmax(1), atol=1e-3, equal_nan=True)
    return bool(same)
