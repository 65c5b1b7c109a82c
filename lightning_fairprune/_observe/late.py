"""Observes tensor functions only where a step computes its loss: after the network."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import Any
from weakref import ref

import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)

from lightning_fairprune._model.capture import LossCapture


class LateCapture(LossCapture):
    """A capture that learns after which module the steps of an evaluation compute their loss.

    A function mode costs microseconds at each tensor function, and nearly all of them belong to the
    network. The mode observes the whole first step. In the second step it finds the module that called
    most others and returned before the loss; from then on it starts when that module returns. It stays on
    in every step if there is no such module, or if the first step ran compiled code, which would contain the hooks.

    Example:
        >>> from torch.nn.functional import cross_entropy
        >>> network, capture = nn.Linear(1, 2), LateCapture()
        >>> for batch_idx in range(3):
        ...     capture.begin(batch_idx)
        ...     _ = cross_entropy(network(torch.zeros(2, 1)), torch.tensor([batch_idx % 2, 1]))
        ...     capture.leave()
        >>> capture.pick(2)[1]
        tensor([0, 1])
    """

    def __init__(self) -> None:
        super().__init__()
        self.within = ExitStack()
        """What else observes the step; it stops first."""
        self._after: ref[nn.Module] | None = None
        self._watching = ExitStack()  # hooks, while there are any
        self._modes = 0  # that others had on when the step began
        self._calls = 0  # of modules, in the step that is learnt from
        self._begun_at: list[int] = []
        self._done: list[tuple[int, ref[nn.Module]]] = []

    @property
    def after(self) -> nn.Module | None:
        """The module after which the mode starts; None for the whole step."""
        return None if self._after is None else self._after()

    def begin(self, batch_idx: int) -> None:
        """Starts noting calls in a step of an evaluation."""
        if batch_idx <= 1:
            self._after = None
        if batch_idx == 1 and not _has_compiled():
            self._learn()
        elif self.after is not None:
            self._wait(self.after)
            return
        self.enter()

    def _learn(self) -> None:
        begun = register_module_forward_pre_hook(self._module_begins)
        self._watching.callback(begun.remove)
        self._watching.callback(register_module_forward_hook(self._module_ends).remove)

    def _wait(self, module: nn.Module) -> None:
        self.calls, self._modes = [], _modes()
        self._watching.callback(module.register_forward_hook(self._arrived).remove)

    def enter(self) -> None:
        """Starts noting calls; forgets the earlier ones."""
        self._modes = _modes()
        super().enter()

    def leave(self) -> None:
        """Stops noting calls; safe to call more than once."""
        self.within.close()
        self._watching.close()
        if self._done and self.noted:
            self._after = max(self._done, key=lambda done: done[0])[1]
        self._calls, self._begun_at, self._done = 0, [], []
        super().leave()

    def why_nothing_fits(self, batch_size: int | None) -> str:
        why, module = super().why_nothing_fits(batch_size), self.after
        if self.noted or module is None:
            return why
        return (
            f"{why} (They were looked for after {type(module).__name__} was done, as in the second batch "
            "of this evaluation; a step that takes another path in other batches must return them.)"
        )

    def _module_begins(self, module: nn.Module, args: Any) -> None:
        self._begun_at.append(self._calls)
        self._calls += 1

    def _module_ends(self, module: nn.Module, args: Any, output: Any) -> None:
        if not self._begun_at:  # it started before the hooks, in another thread
            return
        calls = self._calls - self._begun_at.pop()
        # Scripted modules take no hooks, and modes must be left in reverse order.
        scripted = isinstance(module, torch.jit.ScriptModule)
        if not self.noted and not scripted and _modes() == self._modes + 1:
            self._done.append((calls, ref(module)))

    def _arrived(self, module: nn.Module, args: Any, output: Any) -> None:
        if _modes() == self._modes:
            self._switch_on()


def _modes() -> int:
    """Returns the number of active function modes."""
    return int(torch._C._len_torch_function_stack())


def _has_compiled() -> bool:
    """Whether this process has compiled anything."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    return dynamo is not None and bool(dynamo.counters["frames"])
