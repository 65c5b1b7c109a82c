"""Looking for the loss only where a step computes it: after the network."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from weakref import ref

import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)

from lightning_fairprune.capture import LossCapture

__all__ = ["LateCapture"]


class LateCapture(LossCapture):
    """A capture that learns from one step after which module the next ones compute their loss.

    A function mode costs microseconds at each tensor function, and nearly all of them belong to the
    network. `learn` takes a step with the mode on and notes the module that called most functions and was done
    before the loss; `wait` takes one with the mode off until that module is done. Where there is no such module,
    or where code is compiled, which hooks would change, the mode is on all the time.

    Example:
        >>> from torch.nn.functional import cross_entropy
        >>> network, capture = nn.Linear(1, 2), LateCapture()
        >>> capture.learn()
        >>> _ = cross_entropy(network(torch.zeros(2, 1)), torch.tensor([0, 1]))
        >>> capture.leave()
        >>> capture.after is network
        True
        >>> capture.wait()
        >>> _ = cross_entropy(network(torch.zeros(2, 1)), torch.tensor([1, 1]))
        >>> capture.leave()
        >>> capture.pick(2)[1]
        tensor([1, 1])
    """

    def __init__(self) -> None:
        super().__init__()
        self._after: ref[nn.Module] | None = None
        self._watching = ExitStack()  # hooks, while there are any
        self._is_on = False
        self._modes = 0  # that others had on when the step began
        self._calls = 0  # of functions, in the step that is learnt from
        self._begun_at: list[int] = []
        self._done: list[tuple[int, ref[nn.Module]]] = []

    @property
    def after(self) -> nn.Module | None:
        """The module after which the loss is looked for; None for all the time."""
        return None if self._after is None else self._after()

    def learn(self) -> None:
        """Starts noting calls, in a step like those to come."""
        if self._owners == 0:
            self._after, self._calls = None, 0
            begin = register_module_forward_pre_hook(self._begin)
            self._watching.callback(begin.remove)
            self._watching.callback(register_module_forward_hook(self._end).remove)
        self.enter()

    def wait(self) -> None:
        """Starts noting calls in a step like the one that was learnt from."""
        module = self.after
        if self._owners or module is None:
            self.enter()
            return
        self._hits, self._owners = [], 1
        self._modes = _modes()
        self._watching.callback(module.register_forward_hook(self._arrived).remove)

    def enter(self) -> None:
        """Starts noting calls; forgets the earlier ones unless somebody is already noting."""
        if self._owners == 0:
            self._modes, self._is_on = _modes(), True
        super().enter()

    def leave(self) -> None:
        """Stops noting calls; does nothing when no one is noting."""
        if self._owners != 1:
            super().leave()
            return
        self._watching.close()
        self._begun_at, self._done = [], []
        if self._is_on:
            super().leave()
        self._owners, self._is_on = 0, False

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        self._calls += 1
        before = self.noted
        result = super().__torch_function__(func, types, args, kwargs)
        if self._done and self.noted == 1 > before and not _has_compiled():
            self._after = max(self._done, key=lambda done: done[0])[1]
        return result

    def _why_nothing_fits(self, batch_size: int | None) -> str:
        why, module = super()._why_nothing_fits(batch_size), self.after
        if self.noted or module is None:
            return why
        return (
            f"{why} (It was looked for once {type(module).__name__} is done, as in the first batch of "
            "this evaluation; a step that goes another way in other batches must return them.)"
        )

    def _begin(self, module: nn.Module, args: Any) -> None:
        self._begun_at.append(self._calls)

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        calls = self._calls - self._begun_at.pop()
        # Scripted modules take no hooks, and a mode must be left before one that was there earlier.
        if not isinstance(module, torch.jit.ScriptModule) and _modes() == self._modes + 1:
            self._done.append((calls, ref(module)))

    def _arrived(self, module: nn.Module, args: Any, output: Any) -> None:
        if not self._is_on and _modes() == self._modes:
            self.__enter__()  # type: ignore[no-untyped-call]
            self._is_on = True


def _modes() -> int:
    """Returns how many function modes are on."""
    return int(torch._C._len_torch_function_stack())


def _has_compiled() -> bool:
    """Whether anything was compiled in this process so far."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    return dynamo is not None and bool(dynamo.counters["frames"])
