"""Nests of tensors, as loaders yield them and models take them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

from torch import Tensor

__all__ = ["call", "first_tensor", "leaves", "mapped"]


def leaves(tree: object) -> Iterator[Tensor]:
    """Yields the tensors in nested tuples, lists and mappings."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from leaves(value)
    elif isinstance(tree, (tuple, list)):
        for value in tree:
            yield from leaves(value)


def mapped(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """Returns the same nest with `function` of every tensor; what is no tensor stays."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, MutableMapping):
        new = copy.copy(
            tree
        )  # keeps the type: outputs of some libraries are mappings with attributes
        for key, value in tree.items():
            new[key] = mapped(function, value)
        return new
    if isinstance(tree, (tuple, list)):
        values = [mapped(function, value) for value in tree]
        return type(tree)(*values) if hasattr(tree, "_fields") else type(tree)(values)
    return tree


def call(model: Callable[..., Any], inputs: Any) -> Any:
    """Returns the model's outputs: a mapping gives named arguments, a tuple or list positional ones."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, (tuple, list)):
        return model(*inputs)
    return model(inputs)


def first_tensor(batch: Any) -> Tensor:
    """Returns the input in a batch: the batch itself, or what a tuple or list begins with."""
    if isinstance(batch, tuple | list) and batch:
        batch = batch[0]
    if not isinstance(batch, Tensor):
        raise TypeError(
            "a batch must be a tensor, or a tuple or list that begins with one, got "
            f"{type(batch).__name__}: pass `forward`, which runs the model on a batch."
        )
    return batch
