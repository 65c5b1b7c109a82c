"""Reading logits and target in the steps after the first one, where its answer says that they are."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from lightning_fairprune._model.answer import Answer, formed
from lightning_fairprune._model.capture import LossCapture
from lightning_fairprune._model.compiled import hooked
from lightning_fairprune._model.losses import Seen, ignoring, labels_in, plain
from lightning_fairprune._model.paths import at, outputs_in
from lightning_fairprune._model.taps import metric_input, tapped


class Reading:
    """Reads what an answer says in other steps of the same module.

    A hook on the module that returned the logits costs a microsecond a step; the labels are in the batch. Where they are not,
    a function mode sees the loss, or the metric its update.
    """

    def __init__(self, answer: Answer) -> None:
        self.answer = answer.without_tensors()
        self._stack = ExitStack()
        self._calls = 0
        self._value: Tensor | None = None
        self._given: tuple[Any, Any] | None = None
        self._losses = LossCapture()

    def enter(self) -> None:
        """Starts before a step."""
        said = self.answer
        self._calls, self._value, self._given, self._losses.calls = 0, None, None, []
        if said.output is not None:
            module = said.output[0]()
            if module is not None:
                self._stack.callback(hooked(module, self._returned))
        metric = None if said.metric is None else said.metric()
        if metric is not None and (said.output is None or said.leaf is None):
            self._stack.callback(tapped(metric, self._updated))
        if said.loss is not None and (said.output is None or said.leaf is None):
            self._losses.enter()
            self._stack.callback(self._losses.leave)

    def leave(self) -> None:
        """Stops after the forward pass; safe to call more than once."""
        self._stack.close()

    def _returned(self, module: nn.Module, args: Any, output: Any) -> None:
        assert self.answer.output is not None
        _, call, place = self.answer.output
        if self._calls == call:
            found = outputs_in(output)
            if place < len(found):
                # A copy: the step may change the logits in place for its loss.
                self._value = plain(found[place]).clone()
        self._calls += 1

    def _updated(self, *args: Any, **kwargs: Any) -> Callable[[], None] | None:
        if self._given is None:
            self._given = metric_input(args, kwargs)
        return None

    @property
    def saw_nothing(self) -> bool:
        """Whether the last step took another path than the first one."""
        return self._value is None and self._given is None and not self._losses.calls

    def read(self, outputs: Any, batch: Any) -> Seen:
        """Returns what the step showed; raises if it took another path than the first one."""
        seen = self._read(outputs, batch)
        if seen is None:
            raise ValueError(
                f"the step took another path than the first one, which showed {self.answer.name}: pass "
                "`logits_fn`."
            )
        return seen

    def _read(self, outputs: Any, batch: Any) -> Seen | None:
        self.leave()
        said = self.answer
        if said.returned is not None:
            try:
                logits, target = (outputs[key] for key in said.returned)
            except (LookupError, TypeError):
                return None
            return Seen(plain(logits), plain(target))
        loss = None
        if said.loss is not None and said.loss < len(self._losses.calls):
            loss = self._losses.calls[said.loss]
        with torch.no_grad():
            value: Any = self._value
            if said.output is None:
                given = None if self._given is None else self._given[0]
                value = given if loss is None else loss.input
            label = self._labels(batch, loss)
            if not isinstance(value, Tensor) or label is None:
                return None
            if said.flat and label.ndim == 1 and value.ndim > 2:
                label = label.reshape(value.shape[:-1])
            logits = formed(value, said.form, flat=said.flat)
        self._value = self._given = None
        mixed = None
        if said.seen.mixed is not None and loss is not None and not loss.whole:
            mixed = plain(loss.target)
        return Seen(logits, label, said.seen.per_label, mixed)

    def _labels(self, batch: Any, loss: Any) -> Tensor | None:
        said = self.answer
        if said.leaf is not None:
            found = at(batch, said.leaf)
            if not isinstance(found, Tensor):
                return None
            return ignoring(plain(found), said.ignore_index).long()
        if loss is not None:
            return labels_in(loss, said.seen.per_label)
        if self._given is not None and isinstance(self._given[1], Tensor):
            return ignoring(plain(self._given[1]), said.ignore_index).long()
        return None
