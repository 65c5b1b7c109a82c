"""Nests of tensors, as loaders yield them and models take them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call


def leaves(tree: object) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from leaves(value)
    elif isinstance(tree, (tuple, list)):
        for value in tree:
            yield from leaves(value)


def mapped(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """Returns the same nest with `function` of every tensor; other values stay."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, MutableMapping):
        new = copy.copy(tree)  # keeps the type: some libraries return mappings with attributes
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


def call_with(model: nn.Module, tensors: Mapping[str, Tensor], inputs: Any) -> Any:
    """Returns the outputs that a model would have with other parameters and buffers, by their first names.

    Each place is named once: torch would leave the others in a module that has two names.
    """
    first = {id(t): name for name, t in (*model.named_parameters(), *model.named_buffers())}
    every = {}
    for path, module in model.named_modules():
        own = (module.named_parameters, module.named_buffers)
        for local, tensor in (
            pair for of in own for pair in of(recurse=False, remove_duplicate=False)
        ):
            if first[id(tensor)] in tensors:
                every[f"{path}.{local}".lstrip(".")] = tensors[first[id(tensor)]]

    def changed(*args: Any, **named: Any) -> Any:
        return functional_call(model, every, args, named, tie_weights=False)

    return call(changed, inputs)


def first_tensor(batch: Any) -> Tensor:
    """Returns the input in a batch: the batch itself, or what a tuple or list begins with."""
    if isinstance(batch, tuple | list) and batch:
        batch = batch[0]
    if not isinstance(batch, Tensor):
        raise TypeError(
            "a batch must be a tensor, or a tuple or list that starts with one, got "
            f"{type(batch).__name__}: pass `forward`, which runs the model on a batch."
        )
    return batch
