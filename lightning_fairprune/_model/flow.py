"""How tensors depend on each other in one step: which come from the network, which from the batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.overrides import TorchFunctionMode
from torchmetrics import Metric

from lightning_fairprune._model import operations
from lightning_fairprune._model.capture import LossCapture
from lightning_fairprune._model.compiled import has_compiled_parts, outside
from lightning_fairprune._model.losses import LossCall, in_transform, plain
from lightning_fairprune._model.paths import outputs_in, tensors_of
from lightning_fairprune._model.taps import metric_input, tapped
from lightning_fairprune._model.trees import leaves

_MOST_ELEMENTS = 1 << 26  # that are held


@dataclass(frozen=True, slots=True)
class Trace:
    """What a tensor was computed from.

    Args:
        outputs: numbers of the module outputs that it is, up to scale and shift.
        leaves: numbers of the tensors of the batch that it depends on in the same way.
        normalised: whether a softmax or sigmoid lies between.
        changed: leaves whose values or order were changed on the way, as labels.
    """

    outputs: frozenset[int] = frozenset()
    leaves: frozenset[int] = frozenset()
    normalised: bool = False
    changed: frozenset[int] = frozenset()

    def __or__(self, other: Trace) -> Trace:
        return Trace(
            self.outputs | other.outputs,
            self.leaves | other.leaves,
            self.normalised or other.normalised,
            self.changed | other.changed,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Output:
    """A floating tensor that a module returned.

    Args:
        module: that returned it.
        call: number of its calls in the step before this one.
        place: of the tensor among those that the call returned.
        value: a copy, or the tensor itself if it is large.
        itself: the tensor.
        leaves: tensors of the batch that it depends on.
    """

    module: ref[nn.Module]
    call: int
    place: int
    value: Tensor
    itself: Tensor
    leaves: frozenset[int]


@dataclass(frozen=True, slots=True, eq=False)
class Event:
    """A function that says which tensor holds predictions.

    Args:
        name: of the function or metric.
        input: what it was given.
        trace: of the input.
        loss: the call, if it is a loss.
        number: of the call among those that the capture around the flow sees, also in compiled code.
        target: of a loss or metric.
        target_trace: of the target.
        ignore_index: of a metric.
        metric: the metric.
    """

    name: str
    input: Tensor
    trace: Trace
    loss: LossCall | None = None
    number: int = -1
    target: Tensor | None = None
    target_trace: Trace = Trace()
    ignore_index: int | None = None
    metric: Metric | None = None


class Flow(TorchFunctionMode):
    """Observes one whole step of a module on a batch.

    It costs microseconds at each function that the step calls, and is meant for the first step of a fit. It runs inside a
    capture, which numbers the losses.
    """

    def __init__(self, module: nn.Module, batch: Any, capture: LossCapture) -> None:
        super().__init__()
        self.module, self._capture = module, capture
        self.leaves = list(tensors_of(batch))
        self.outputs: dict[int, Output] = {}
        self.events: list[Event] = []
        self.picks: list[tuple[Tensor, Trace]] = []
        """Integers that chose elements along some axis, as labels do in a loss that is written by hand."""
        self._number = 0
        self._held = 0
        self._calls: dict[int, int] = {}
        self._traces: dict[int, tuple[ref[Tensor], Trace]] = {}
        self._stack = ExitStack()
        self._paused = False
        self._depth = 0  # of function modes, with this one
        for i, (_, tensor) in enumerate(self.leaves):
            self._set(tensor, Trace(leaves=frozenset({i})))

    def enter(self) -> None:
        """Starts observing."""
        if has_compiled_parts(self.module):
            self._hook_outside()
        else:
            self._stack.callback(register_module_forward_hook(self._returned).remove)
        for name, part in self.module.named_modules():
            if isinstance(part, Metric):
                self._stack.callback(tapped(part, self._taps(name, part)))
        self._stack.enter_context(self)
        self._depth = torch._C._len_torch_function_stack()

    def _hook_outside(self) -> None:
        """Observes compiled parts from outside: code that runs in them would be compiled with them."""
        left: list[bool] = []

        def before(module: nn.Module, args: Any) -> None:
            # Modes end in reverse order, and the step may have started one.
            left.append(torch._C._len_torch_function_stack() == self._depth)
            self._paused = True  # what is left of this mode is compiled, too
            if left[-1]:
                self.__exit__(None, None, None)  # type: ignore[no-untyped-call]

        def after(module: nn.Module, args: Any, output: Any) -> None:
            self._paused = False
            if left.pop():
                self.__enter__()  # type: ignore[no-untyped-call]

        for part, is_compiled in outside(self.module):
            if is_compiled:
                self._stack.callback(part.register_forward_pre_hook(before).remove)
                self._stack.callback(part.register_forward_hook(after, always_call=True).remove)
            self._stack.callback(part.register_forward_hook(self._returned).remove)

    def leave(self) -> None:
        """Stops observing; safe to call more than once."""
        self._stack.close()

    @property
    def losses(self) -> dict[int, Event]:
        """The losses by their numbers."""
        return {event.number: event for event in self.events if event.loss is not None}

    def trace(self, tensor: Tensor) -> Trace:
        """Returns what a tensor was computed from."""
        found = self._traces.get(id(tensor))
        return found[1] if found is not None and found[0]() is tensor else Trace()

    def _set(self, tensor: Tensor, trace: Trace) -> None:
        if trace.outputs or trace.leaves:
            self._traces[id(tensor)] = ref(tensor), trace

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if self._paused:
            return func(*args, **(kwargs or {}))
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "").strip("_")
        given = list(leaves((args, kwargs)))
        if any(map(in_transform, given)):
            return func(*args, **kwargs)
        trace = Trace()
        for tensor in given:
            trace = trace | self.trace(tensor)
        self._note(name, func, args, kwargs)
        out = func(*args, **kwargs)
        if (trace.outputs or trace.leaves) and name not in operations.SHAPES:
            if name not in operations.SAME_LABELS and _are_labels(given, out):
                trace = trace | Trace(changed=trace.leaves)
            self._pass_on(name, trace, args, out)
        return out

    def _note(
        self,
        name: str,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> None:
        loss = LossCall.of(func, args, kwargs)
        if loss is not None:
            traces = self.trace(loss.input), self.trace(loss.target)
            self.events.append(
                Event(
                    name,
                    loss.input,
                    traces[0],
                    loss=loss,
                    number=len(self._capture.calls),
                    target=loss.target,
                    target_trace=traces[1],
                    ignore_index=loss.ignore_index,
                )
            )
        elif name in operations.NORMALISED or name in operations.CHOSEN:
            value = args[0] if args else kwargs.get("input")
            if isinstance(value, Tensor) and value.is_floating_point():
                self.events.append(Event(name, value, self.trace(value)))
        if name in operations.PICKS:
            for tensor in leaves((args, kwargs)):
                trace = self.trace(tensor)
                if trace.leaves and not tensor.is_floating_point() and tensor.dtype != torch.bool:
                    self.picks.append((tensor, trace))

    def _pass_on(self, name: str, trace: Trace, args: tuple[Any, ...], out: Any) -> None:
        if name in operations.LAYERS and not trace.normalised and _is_floating(out):
            trace = Trace()
        if name in operations.NORMALISED:
            trace = trace | Trace(normalised=True)
        if name == "setitem":
            out = args[0]
        for tensor in leaves(out):
            self._set(tensor, trace)

    def _returned(self, module: nn.Module, args: Any, output: Any) -> None:
        call = self._calls.get(id(module), 0)
        self._calls[id(module)] = call + 1
        if self._paused or isinstance(module, Metric):
            return
        for place, tensor in enumerate(outputs_in(output)):
            if not tensor.is_floating_point() or tensor.ndim == 0 or in_transform(tensor):
                continue
            own = self.trace(tensor).leaves
            with torch._C.DisableTorchFunction():
                value = plain(tensor)
                value = value.clone() if value.numel() < 1 << 20 else value
            self.outputs[self._number] = Output(ref(module), call, place, value, tensor, own)
            self._set(tensor, Trace(frozenset({self._number}), own))
            self._held += tensor.numel()
            self._number += 1
        while self._held > _MOST_ELEMENTS and len(self.outputs) > 1:
            oldest = next(iter(self.outputs))
            self._held -= self.outputs.pop(oldest).value.numel()

    def _taps(self, name: str, metric: Metric) -> Callable[..., Any]:
        def before(*args: Any, **kwargs: Any) -> Callable[[], None]:
            preds, target = metric_input(args, kwargs)
            if isinstance(preds, Tensor) and isinstance(target, Tensor):
                ignore = getattr(metric, "ignore_index", None)
                traces = self.trace(preds), self.trace(target)
                called = f"the metric `{name}`" if name else "a metric"
                self.events.append(
                    Event(
                        called,
                        preds,
                        traces[0],
                        target=target,
                        target_trace=traces[1],
                        ignore_index=ignore,
                        metric=metric,
                    )
                )
            earlier, self._paused = self._paused, True

            def after() -> None:
                self._paused = earlier

            return after

        return before


def _are_labels(given: list[Tensor], out: Any) -> bool:
    """Whether a function takes or returns no floating tensor."""
    return not _is_floating(given) or not _is_floating(out)


def _is_floating(tree: Any) -> bool:
    return any(tensor.is_floating_point() for tensor in leaves(tree))
