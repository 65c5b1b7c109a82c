"""How tensors depend on each other in one step: which come from the network, which from the batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal
from weakref import ref

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.overrides import TorchFunctionMode
from torchmetrics import Metric

from lightning_fairprune._model.losses import LossCall, plain
from lightning_fairprune._model.trees import leaves

Path = tuple[tuple[Literal["item", "attribute"], Any], ...]

# What comes out of these is no longer a prediction that was only rescaled: a layer lies between, or the sign.
_LAYERS = frozenset(
    {
        *(
            "linear",
            "bilinear",
            "matmul",
            "rmatmul",
            "mm",
            "bmm",
            "mv",
            "addmm",
            "baddbmm",
            "addmv",
            "einsum",
        ),
        *(
            "tensordot",
            "cdist",
            "embedding",
            "embedding_bag",
            "lstm",
            "gru",
            "rnn_tanh",
            "rnn_relu",
        ),
        *("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
        *(
            "scaled_dot_product_attention",
            "multi_head_attention_forward",
            "neg",
            "negative",
            "rsub",
        ),
    }
)
# These take a shape, and no values.
_SHAPES = frozenset(
    {
        *(
            "zeros_like",
            "ones_like",
            "full_like",
            "empty_like",
            "rand_like",
            "randn_like",
            "randint_like",
        ),
        *("new_zeros", "new_ones", "new_full", "new_empty", "new_tensor"),
    }
)
_NORMALISED = frozenset({"log_softmax", "softmax", "sigmoid", "logsigmoid"})
# These leave class indices as they are, or turn them into one-hot rows.
_SAME_LABELS = frozenset(
    {
        *(
            "long",
            "int",
            "short",
            "to",
            "type",
            "type_as",
            "float",
            "half",
            "double",
            "bfloat16",
            "cuda",
            "cpu",
            "get",
        ),
        *(
            "view",
            "reshape",
            "flatten",
            "ravel",
            "squeeze",
            "unsqueeze",
            "expand",
            "contiguous",
            "clone",
            "detach",
        ),
        *("movedim", "permute", "transpose", "as_subclass", "one_hot", "scatter"),
    }
)
_CHOSEN = frozenset({"argmax", "max", "topk", "sort", "argsort"})
# Functions whose integer arguments pick classes, so that these are labels.
_PICKS = frozenset({"gather", "one_hot", "scatter", "getitem", "setitem", "eq", "take_along_dim"})
_MOST_LEAVES, _MOST_ELEMENTS = 256, 1 << 26


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
        target: of a loss or metric.
        target_trace: of the target.
        ignore_index: of a metric.
        metric: the metric.
    """

    name: str
    input: Tensor
    trace: Trace
    loss: LossCall | None = None
    target: Tensor | None = None
    target_trace: Trace = Trace()
    ignore_index: int | None = None
    metric: Metric | None = None


class Flow(TorchFunctionMode):
    """Observes one whole step of a module on a batch.

    It costs microseconds at each function that the step calls, and is meant for the first step of a fit.
    """

    def __init__(self, module: nn.Module, batch: Any) -> None:
        super().__init__()
        self.module = module
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
        for i, (_, tensor) in enumerate(self.leaves):
            self._set(tensor, Trace(leaves=frozenset({i})))

    def enter(self) -> None:
        """Starts observing."""
        self._stack.callback(register_module_forward_hook(self._returned).remove)
        for name, part in self.module.named_modules():
            if isinstance(part, Metric):
                self._stack.callback(tapped(part, self._taps(name, part)))
        self._stack.enter_context(self)

    def leave(self) -> None:
        """Stops observing; safe to call more than once."""
        self._stack.close()

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
        kwargs = kwargs or {}
        if self._paused:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "").strip("_")
        given = list(_tensors((args, kwargs)))
        trace = Trace()
        for tensor in given:
            trace = trace | self.trace(tensor)
        self._note(name, func, args, kwargs)
        out = func(*args, **kwargs)
        if (trace.outputs or trace.leaves) and name not in _SHAPES:
            if name not in _SAME_LABELS and _are_labels(given, out):
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
                Event(name, loss.input, traces[0], loss, loss.target, traces[1], loss.ignore_index)
            )
        elif name in _NORMALISED or name in _CHOSEN:
            value = args[0] if args else kwargs.get("input")
            if isinstance(value, Tensor) and value.is_floating_point():
                self.events.append(Event(name, value, self.trace(value)))
        if name in _PICKS:
            for tensor in _tensors((args, kwargs)):
                trace = self.trace(tensor)
                if trace.leaves and not tensor.is_floating_point() and tensor.dtype != torch.bool:
                    self.picks.append((tensor, trace))

    def _pass_on(self, name: str, trace: Trace, args: tuple[Any, ...], out: Any) -> None:
        if name in _LAYERS and not trace.normalised and _is_floating(out):
            trace = Trace()
        if name in _NORMALISED:
            trace = trace | Trace(normalised=True)
        if name == "setitem":
            out = args[0]
        for tensor in _tensors(out):
            self._set(tensor, trace)

    def _returned(self, module: nn.Module, args: Any, output: Any) -> None:
        call = self._calls.get(id(module), 0)
        self._calls[id(module)] = call + 1
        if self._paused or isinstance(module, Metric):
            return
        for place, tensor in enumerate(outputs_in(output)):
            if not tensor.is_floating_point() or tensor.ndim == 0:
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
                    Event(called, preds, traces[0], None, target, traces[1], ignore, metric)
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
    return any(tensor.is_floating_point() for tensor in _tensors(tree))


def metric_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
    """Returns predictions and target that a metric is updated with."""
    preds = args[0] if args else kwargs.get("preds")
    return preds, args[1] if len(args) > 1 else kwargs.get("target")


def tapped(metric: Metric, before: Callable[..., Callable[[], None] | None]) -> Callable[[], None]:
    """Calls `before` with the arguments of each update of a metric, and what it returns afterwards.

    Returns the function that undoes it.
    """
    update = metric.update

    def observed(*args: Any, **kwargs: Any) -> None:
        after = before(*args, **kwargs)
        try:
            update(*args, **kwargs)
        finally:
            if after is not None:
                after()

    metric.__dict__["update"] = observed

    def undo() -> None:
        metric.__dict__["update"] = update

    return undo


def tensors_of(batch: Any, path: Path = ()) -> Iterator[tuple[Path, Tensor]]:
    """Returns the tensors of any batch, and where in it they are."""
    if isinstance(batch, Tensor):
        yield path, batch
        return
    if len(path) > 3:
        return
    for (way, key), value in list(_parts(batch))[:_MOST_LEAVES]:
        yield from tensors_of(value, (*path, (way, key)))


def _parts(batch: Any) -> Iterator[tuple[tuple[Literal["item", "attribute"], Any], Any]]:
    keys = getattr(batch, "keys", None)
    if isinstance(batch, Mapping) or (callable(keys) and hasattr(type(batch), "__getitem__")):
        for key in list(batch.keys()):
            yield ("item", key), batch[key]
    elif isinstance(batch, (tuple, list)):
        for i, value in enumerate(batch):
            yield ("item", i), value
    elif is_dataclass(batch) and not isinstance(batch, type):
        for field in fields(batch):
            yield ("attribute", field.name), getattr(batch, field.name, None)
    elif hasattr(batch, "__dict__"):
        for name, value in vars(batch).items():
            yield ("attribute", name), value


def at(batch: Any, path: Path) -> Any:
    """Returns the part of a batch at a path; None if there is none."""
    try:
        for way, key in path:
            batch = batch[key] if way == "item" else getattr(batch, key)
    except (AttributeError, LookupError, TypeError):
        return None
    return batch


def outputs_in(output: Any) -> list[Tensor]:
    """Returns the first tensors that a module returned."""
    if is_dataclass(output) and not isinstance(output, (type, Mapping)):
        output = [getattr(output, field.name) for field in fields(output)]
    return [tensor for tensor, _ in zip(leaves(output), range(8), strict=False)]


def _tensors(tree: Any, depth: int = 3) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif depth and isinstance(tree, (tuple, list)):
        for value in tree:
            yield from _tensors(value, depth - 1)
    elif depth and isinstance(tree, Mapping):
        for value in tree.values():
            yield from _tensors(value, depth - 1)
