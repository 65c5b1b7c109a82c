"""Compiled modules, which must not be hooked or observed by code that changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook


def is_compiled(module: nn.Module) -> bool:
    """Whether the steps of a module run compiled code that is no module of its own.

    The hooks of the first step would stay in it. A part made by ``torch.compile(part)`` is called from outside.
    """
    if getattr(module, "_compiler_ctx", None) is not None:
        return True
    if any(part.__dict__.get("_compiled_call_impl") is not None for part in module.modules()):
        return True
    values = (*vars(type(module)).values(), *vars(module).values())
    return any(hasattr(value, "_torchdynamo_orig_callable") for value in values)


def has_compiled_parts(module: nn.Module) -> bool:
    """Whether a part was made by ``torch.compile(part)``."""
    return any(_is_wrapper(part) for part in module.modules())


def outside(module: nn.Module) -> Iterator[tuple[nn.Module, bool]]:
    """Returns the parts that run outside compiled code, and whether they call compiled code."""
    waiting = [module]
    while waiting:
        part = waiting.pop()
        yield part, _is_wrapper(part)
        if not _is_wrapper(part):
            waiting += part.children()


def _is_wrapper(part: nn.Module) -> bool:
    return "_orig_mod" in part._modules


def hooked(module: nn.Module, hook: Callable[[nn.Module, Any, Any], None]) -> Callable[[], None]:
    """Calls `hook` after each forward pass of a module; returns the function that undoes it."""
    if not isinstance(module, torch.jit.ScriptModule):
        return module.register_forward_hook(hook).remove

    # A scripted module takes no hooks of its own.
    def of_any(part: nn.Module, args: Any, output: Any) -> None:
        if part is module:
            hook(part, args, output)

    return register_module_forward_hook(of_any).remove
