"""What masks leave, and weights that obey them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Sparsity:
    """Fraction of weights that masks remove: of all in `total`, of each parameter in `layers`, by its name.

    Example:
        >>> Sparsity(0.5, {"a": 0.25, "b": 0.75}).highest
        0.75
    """

    total: float
    layers: dict[str, float]

    @property
    def lowest(self) -> float:
        """Sparsity of the densest layer."""
        return min(self.layers.values())

    @property
    def highest(self) -> float:
        """Sparsity of the sparsest layer; 1 is a layer without any weight."""
        return max(self.layers.values())


def sparsity_of(masks: Mapping[str, Tensor]) -> Sparsity:
    """Return the fraction of weights that bool masks remove, in all and in each layer; NaN without any weight.

    Example:
        >>> found = sparsity_of({"a": torch.tensor([True, False]), "b": torch.tensor([True, True])})
        >>> found.total, found.layers
        (0.25, {'a': 0.5, 'b': 0.0})
    """
    kept = {name: int(mask.sum()) for name, mask in masks.items()}
    sizes = {name: mask.numel() for name, mask in masks.items()}
    layers = {name: _removed(kept[name], sizes[name]) for name in masks}
    return Sparsity(_removed(sum(kept.values()), sum(sizes.values())), layers)


def _removed(kept: int, size: int) -> float:
    return (size - kept) / size if size else float("nan")


def apply(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Set the weights of a model that bool masks remove to zero, in place.

    Raises:
        TypeError: If a mask is not bool.
        ValueError: If the model has no parameter of a name, or its shape is another.

    Example:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> apply(layer, {"weight": torch.tensor([[False, False]])})
        >>> layer.weight.tolist()
        [[0.0, 0.0]]
    """
    parameters = dict(model.named_parameters())
    for name, mask in masks.items():
        found = parameters.get(name)
        if found is None or found.shape != mask.shape:
            shape = "no parameter" if found is None else str(list(found.shape))
            raise ValueError(f"`masks` has `{name}` {list(mask.shape)}, the model has {shape}.")
        if mask.dtype != torch.bool:
            raise TypeError(f"`masks` must be bool, True = kept, got {mask.dtype} of `{name}`.")
    with torch.no_grad():
        for name, mask in masks.items():
            parameters[name].masked_fill_(~mask.to(parameters[name].device), 0)
