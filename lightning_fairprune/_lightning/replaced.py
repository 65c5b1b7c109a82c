"""A method of one object, replaced for a while."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def replaced(owner: Any, name: str, function: Callable[..., Any]) -> Callable[[], None]:
    """Sets a method of an instance; returns the function that undoes it."""
    before = owner.__dict__.get(name)
    setattr(owner, name, function)

    def undo() -> None:
        if before is None:
            owner.__dict__.pop(name, None)
        else:
            setattr(owner, name, before)

    return undo
