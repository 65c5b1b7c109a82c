"""Functions and objects as text, for settings in records."""

from __future__ import annotations

from functools import partial
from typing import Any


def name_of(value: Any) -> str | int | None:
    """Returns a function as text: ``drop``, ``drop(cap=[3, 4])``, ``Minimax()``."""
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, partial):
        given = [repr(x) for x in value.args] + [f"{k}={x!r}" for k, x in value.keywords.items()]
        return f"{name_of(value.func)}({', '.join(given)})"
    name = getattr(value, "__name__", None)
    if name is not None:
        return str(name)
    # The default repr contains the address, which differs between runs.
    text = repr(value)
    return f"{type(value).__name__}()" if f" at {hex(id(value))}" in text else text


def called(function: object) -> str:
    """Returns the name of a function for messages."""
    return getattr(function, "__name__", repr(function))
