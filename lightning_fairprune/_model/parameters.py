"""The parameters that a user names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn


def named(
    model: nn.Module, parameters: Iterable[str] | Iterable[nn.Parameter]
) -> dict[str, nn.Parameter]:
    """Returns parameters by their first names, each once; raises a ValueError for those of no or another model."""
    if isinstance(parameters, str):
        raise ValueError(
            f"`parameters` must be an iterable of names, got the string {parameters!r}."
        )
    every = dict(model.named_parameters(remove_duplicate=False))
    first = {id(parameter): name for name, parameter in reversed(every.items())}
    return {(name := _name(item, every, first)): every[name] for item in parameters}


def _name(item: object, every: Mapping[str, nn.Parameter], first: Mapping[int, str]) -> str:
    if isinstance(item, Tensor):
        if id(item) not in first:
            raise ValueError(
                f"`parameters` must be parameters of `model`, got a tensor {list(item.shape)} that is "
                "not one."
            )
        return first[id(item)]
    if item not in every:
        raise ValueError(
            f"`parameters` must be names of parameters of `model`, got {item!r}; it has {', '.join(every)}."
        )
    return first[id(every[str(item)])]
