"""Checks of arguments that callbacks share, and the arguments as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from numbers import Integral, Real
from typing import Any

from lightning_fairprune.records.settings import name_of


def given(local: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of an ``__init__`` from its ``locals()``."""
    return {name: value for name, value in local.items() if name != "self"}


def without_fit(callback: object, **instead: Any) -> dict[str, Any]:
    """Returns what a copy of a callback takes with it, with `instead` in place of what belongs to the fit.

    The Trainer gives its callbacks the methods `log` and `log_dict` of the module.
    """
    state = {
        name: value for name, value in vars(callback).items() if name not in ("log", "log_dict")
    }
    return state | instead


def number(name: str, value: object, *, whole: bool = False) -> None:
    """Raises a TypeError unless a value is a number, of Python, numpy or torch."""
    value = _plain(value)
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


def at_least(name: str, value: float, least: int, unit: str = "") -> None:
    """Raises a ValueError if a number is too small."""
    if not value >= least:
        bound = "0 or more" if least == 0 else f"at least {least}"
        raise ValueError(f"`{name}` must be {bound}{unit and f' {unit}'}, got {value}.")


def shrinkage(value: object) -> None:
    """Raises unless a value is "auto" or a number of pseudo-samples."""
    if isinstance(value, str) and value != "auto":
        raise ValueError(f"`shrinkage` must be 'auto' or a number of samples, got {value!r}.")
    if value != "auto":
        number("shrinkage", value)
        at_least("shrinkage", value, 0, "samples")  # type: ignore[arg-type]


def as_text(settings: Any, *, without: Sequence[str]) -> dict[str, Any]:
    """Returns settings as text, numbers of Python and lists of them, for records and checkpoints."""
    values = {f.name: _plain(getattr(settings, f.name)) for f in fields(settings)}
    return {
        name: value if isinstance(value, float | list | tuple) else name_of(value)
        for name, value in values.items()
        if name not in without
    }


def check_same(owner: str, now: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    """Raises a ValueError that names the arguments that differ from those of the checkpoint.

    Arguments that the checkpoint lacks are not compared.
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


def _plain(value: Any) -> Any:
    """Returns a scalar of numpy or torch as a number of Python, and other values as they are."""
    return value.item() if getattr(value, "shape", None) == () else value


def _short(value: object) -> str:
    return repr(value) if isinstance(value, str | int | float) else type(value).__name__
