"""Working with a model and leaving it as it was."""

from __future__ import annotations

import random
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy

_DICTS = (dict, OrderedDict, defaultdict, Counter)
_NESTS = (*_DICTS, list, set, deque)
# Models whose weights an outer loan has copied and will put back.
_lent: dict[int, nn.Module] = {}


def device_of(model: nn.Module) -> torch.device:
    """Returns where the model is: the device of its first parameter, the CPU if it has none."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Puts a module in eval mode, and restores the mode of each of its parts."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


@contextmanager
def isolated_rng() -> Iterator[None]:
    """Restores the random states of torch, numpy and Python."""
    of_numpy, of_python = np.random.get_state(), random.getstate()  # noqa: NPY002 - what augmentations use
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            np.random.set_state(of_numpy)  # noqa: NPY002
            random.setstate(of_python)


@contextmanager
def borrowed(model: nn.Module, *, gradients: bool = False) -> Iterator[State]:
    """Puts the model into eval mode; afterwards, also after an exception, it is as it was.

    Restored are weights and buffers, to which layers may write in a forward pass (an embedding with `max_norm`);
    whatever else parts keep in attributes, lists, dictionaries and sets, such as counts of metrics; modes, flags,
    gradients and hooks; random states. The gradients are set aside meanwhile. `gradients` turns gradients on, and what
    lacks them off: inference mode, autocast, fused attention.

    Every tensor is copied once, on its device, so this takes the memory of the model; a loan inside another of the
    same model copies none, and leaves their values to the outer one.
    """
    if gradients:
        _check_ordinary(model)
    with ExitStack() as stack:
        stack.enter_context(isolated_rng())
        fused = torch.backends.mha.get_fastpath_enabled()
        stack.callback(torch.backends.mha.set_fastpath_enabled, fused)
        parts = list(model.modules())
        for part in parts:  # scripted ones do not have it among their attributes
            stack.callback(setattr, part, "training", part.training)
        # Parameters and buffers once more, for scripted parts.
        things = (*parts, *model.parameters(), *model.buffers())
        state = State(things, values=id(model) not in _lent)
        stack.callback(state.put_back)
        if id(model) not in _lent:
            _lent[id(model)] = model
            stack.callback(_lent.pop, id(model))
        state.set_gradients_aside()
        if gradients:
            for part in parts:
                part.training = False
            torch.backends.mha.set_fastpath_enabled(False)
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            stack.enter_context(torch.autocast(device_of(model).type, enabled=False))
        else:
            model.eval()
        yield state


def _check_ordinary(model: nn.Module) -> None:
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_inference():
            raise ValueError(
                "`model` must be made outside of inference mode, got an inference tensor of shape "
                f"{list(tensor.shape)}: gradients need ordinary ones."
            )


class State:
    """What `things`, modules and tensors, hold directly or in lists, dictionaries, sets and tuples.

    Without `values` no tensor is copied, and only which tensor is where is restored.
    """

    def __init__(self, things: Iterable[Any], *, values: bool = True) -> None:
        self._own: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._nests: list[tuple[Any, Any]] = []
        self._flags: list[tuple[Tensor, bool, Tensor | None]] = []
        self._values: list[tuple[Tensor, Tensor]] = []
        waiting = list(things)
        seen: dict[int, Any] = {}  # by identity: the hash of a metric changes
        while waiting:
            thing = waiting.pop()
            if id(thing) not in seen:
                seen[id(thing)] = thing
                waiting += filter(_is_looked_into, self._keep(thing, values))

    def _keep(self, thing: Any, values: bool) -> Iterable[Any]:
        """Records one thing and returns what is in it."""
        if isinstance(thing, Tensor):
            if is_lazy(thing):  # these and the layers that have them take their shape for good
                return ()
            if values:
                self._values.append((memory := _memory(thing), memory.clone()))
            if thing.is_leaf and not thing.is_inference():
                self._flags.append((thing, thing.requires_grad, thing.grad))
            return ()
        if isinstance(thing, nn.Module):
            if isinstance(thing, LazyModuleMixin) and thing.has_uninitialized_params():
                return ()
            self._own.append((vars(thing), dict(vars(thing))))
            return vars(thing).values()
        if isinstance(thing, tuple):
            return thing
        pairs = type(thing) in _DICTS
        self._nests.append((thing, dict(thing) if pairs else list(thing)))
        return list(thing.values() if pairs else thing)

    def set_gradients_aside(self) -> None:
        """Removes the gradients until `put_back`: no backward pass adds to them."""
        for tensor, _, grad in self._flags:
            if grad is not None:
                tensor.grad = None

    def put_back(self) -> None:
        for own, before in self._own:
            for name in own.keys() - before.keys():
                del own[name]
            own.update(before)
        for nest, entries in self._nests:
            nest.clear()
            (nest.extend if isinstance(nest, list | deque) else nest.update)(entries)
        for tensor, flag, grad in self._flags:
            if not tensor.is_leaf:  # written to in place, by what has a gradient
                tensor.detach_()
            tensor.requires_grad_(flag)
            tensor.grad = grad
        for memory, value in self._values:
            with torch.inference_mode(memory.is_inference()):
                memory.copy_(value)


def _is_looked_into(thing: object) -> bool:
    return isinstance(thing, Tensor | nn.Module | tuple) or type(thing) in _NESTS


def _memory(tensor: Tensor) -> Tensor:
    """Returns a view of a tensor to write to, with each number once where an expanded tensor repeats it.

    By `data`, so that a later backward pass does not see a write.
    """
    view = tensor.data
    if view.layout == torch.strided and not view.is_nested:
        for axis, (size, stride) in enumerate(zip(view.shape, view.stride(), strict=True)):
            if stride == 0 and size > 1:
                view = view.narrow(axis, 0, 1)
    return view
