"""Where in a batch, or in what a module returns, tensors are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from itertools import islice
from typing import Any, Literal

from torch import Tensor

from lightning_fairprune._model.trees import leaves

Path = tuple[tuple[Literal["item", "attribute"], Any], ...]
_MOST_LEAVES = 256


def tensors_of(batch: Any, path: Path = ()) -> Iterator[tuple[Path, Tensor]]:
    """Returns the tensors of any batch, and where in it they are."""
    if isinstance(batch, Tensor):
        yield path, batch
        return
    if len(path) > 3:
        return
    for (way, key), value in list(_parts(batch))[:_MOST_LEAVES]:
        yield from tensors_of(value, (*path, (way, key)))


def _parts(batch: Any) -> Iterator[tuple[tuple[Literal["item", "attribute"], Any], Any]]:
    keys = getattr(batch, "keys", None)
    if isinstance(batch, Mapping) or (callable(keys) and hasattr(type(batch), "__getitem__")):
        for key in list(batch.keys()):
            yield ("item", key), batch[key]
    elif isinstance(batch, (tuple, list)):
        for i, value in enumerate(batch):
            yield ("item", i), value
    elif is_dataclass(batch) and not isinstance(batch, type):
        for field in fields(batch):
            yield ("attribute", field.name), getattr(batch, field.name, None)
    elif hasattr(batch, "__dict__"):
        for name, value in vars(batch).items():
            yield ("attribute", name), value


def at(batch: Any, path: Path) -> Any:
    """Returns the part of a batch at a path; None if there is none."""
    try:
        for way, key in path:
            batch = batch[key] if way == "item" else getattr(batch, key)
    except (AttributeError, LookupError, TypeError):
        return None
    return batch


def outputs_in(output: Any) -> list[Tensor]:
    """Returns the first tensors that a module returned."""
    if is_dataclass(output) and not isinstance(output, (type, Mapping)):
        output = [getattr(output, field.name) for field in fields(output)]
    return list(islice(leaves(output), 8))
