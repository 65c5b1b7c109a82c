"""Compiled modules, which must not be hooked or observed by code that changes."""

from __future__ import annotations

from torch import nn


def is_compiled(module: nn.Module) -> bool:
    """Whether a part of a module is compiled, so that the hooks of one step would stay in it."""
    if getattr(module, "_compiler_ctx", None) is not None:
        return True
    for part in module.modules():
        if hasattr(part, "_orig_mod") or part.__dict__.get("_compiled_call_impl") is not None:
            return True
    values = (*vars(type(module)).values(), *vars(module).values())
    return any(hasattr(value, "_torchdynamo_orig_callable") for value in values)
