"""Checks of arguments that callbacks share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

__all__ = ["check_same", "function", "number", "one_of"]


def number(name: str, value: object, *, whole: bool = False) -> None:
    """Raises a TypeError unless a value is a number, of Python, numpy or torch."""
    value = value.item() if getattr(value, "shape", None) == () else value  # type: ignore[attr-defined]
    if isinstance(value, bool) or not isinstance(value, Integral if whole else Real):
        kind = "a whole number" if whole else "a number"
        raise TypeError(f"`{name}` must be {kind}, got {_short(value)}.")


def function(name: str, value: object, example: str) -> None:
    """Raises a TypeError unless a value is None or can be called."""
    if value is not None and not callable(value):
        raise TypeError(f"`{name}` must be a function, such as {example}, got {_short(value)}.")


def one_of(name: str, value: object, allowed: Sequence[str]) -> None:
    """Raises a ValueError unless a value is one of a few words."""
    if value not in allowed:
        raise ValueError(f"`{name}` must be one of {', '.join(allowed)}, got {value!r}.")


def check_same(owner: str, now: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    """Raises a ValueError that names the arguments that a resumed fit did not begin with.

    Args:
        owner: the callback whose arguments they are.
        now: arguments to compare.
        before: those of the checkpoint; what it does not know is not compared.
    """
    changed = [name for name in now if name in before and now[name] != before[name]]
    if changed:
        raise ValueError(
            f"a resumed fit must use the arguments of the original fit, but {owner} has "
            + ", ".join(f"`{name}`={now[name]!r}" for name in changed)
            + " where the checkpoint has "
            + ", ".join(repr(before[name]) for name in changed)
            + ": give the same, or start a new fit from the weights of the checkpoint."
        )


def _short(value: object) -> str:
    return repr(value) if isinstance(value, str | int | float) else type(value).__name__
