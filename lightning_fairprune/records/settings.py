"""Functions and objects as a person writes them, for settings in records."""

from __future__ import annotations

from functools import partial
from typing import Any


def name_of(value: Any) -> str | int | None:
    """Returns how a person would write a function: ``drop``, ``drop(cap=[3, 4])``, ``Minimax()``."""
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, partial):
        given = [repr(x) for x in value.args] + [f"{k}={x!r}" for k, x in value.keywords.items()]
        return f"{name_of(value.func)}({', '.join(given)})"
    name = getattr(value, "__name__", None)
    if name is not None:
        return str(name)
    # The default repr of an object has its address, which differs from run to run.
    text = repr(value)
    return f"{type(value).__name__}()" if f" at {hex(id(value))}" in text else text


def called(function: object) -> str:
    """Returns how a message names a function."""
    return getattr(function, "__name__", repr(function))
