"""Which parameters are scored, and under which names."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_fairprune._model.parameters import named

_LAYERS = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d
)  # fmt: skip
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
# Its own name, and those that `torch.nn.utils.prune` and `torch.nn.utils.parametrize` give it.
_WEIGHT = ("weight", "weight_orig", "parametrizations.weight.original")


def prunable(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the weights that are pruned by default, as in `model.named_parameters()` and in its order.

    These are the weights of linear and convolution layers (1d, 2d, 3d, also transposed) and of layers derived from them; a
    shared weight once, under its first name. Biases, normalisation layers and embeddings are not pruned, nor is a linear
    weight tied to an embedding; raw parameters, such as `in_proj_weight` of attention, have to be named. A weight that
    `torch.nn.utils.prune` or `torch.nn.utils.parametrize` replaced has the name of its original.

    Example:
        >>> prunable(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)))
        ('0.weight', '2.weight')
    """
    wanted, embedded = set(), set()
    for module in model.modules():
        if isinstance(module, _LAYERS):
            wanted |= _weights(module)
        elif isinstance(module, _EMBEDDINGS):
            embedded |= _weights(module)
    wanted -= embedded
    return tuple(name for name, tensor in model.named_parameters() if id(tensor) in wanted)


def _weights(module: nn.Module) -> set[int]:
    own = dict(module.named_parameters())
    return {id(own[name]) for name in _WEIGHT if name in own}


def chosen(model: nn.Module, parameters: Iterable[str] | None) -> dict[str, nn.Parameter]:
    """Returns the parameters to score by their first names, in the order of the model."""
    if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        raise ValueError(
            f"`model` must be the network itself, got {type(model).__name__}: pass `model.module`."
        )
    if parameters is None and not (parameters := prunable(model)):
        raise ValueError(
            "`model` must have a linear or convolution layer, got "
            f"{type(model).__name__} without one: name `parameters`."
        )
    wanted = named(model, parameters)
    if not wanted:
        raise ValueError("`parameters` must name at least one parameter, got none.")
    found = {name: tensor for name, tensor in model.named_parameters() if name in wanted}
    for name, tensor in found.items():
        if is_lazy(tensor):
            raise ValueError(
                f"every parameter must have a shape, got `{name}` of a lazy layer: run the model once before."
            )
        if not tensor.is_floating_point():
            raise ValueError(
                f"every parameter must be floating point, got `{name}` of {tensor.dtype}."
            )
    return found


def full_precision(tensor: Tensor) -> Tensor:
    """Returns a detached float32 tensor, float64 for a float64 one."""
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))
