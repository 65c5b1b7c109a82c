"""Which parameters are scored, and under which names."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_fairprune._model.matrices import lookups_of, matrices_of
from lightning_fairprune._model.parameters import named


def prunable(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the weights that are pruned by default, as in `model.named_parameters()` and in its order.

    These are the matrices and kernels that are multiplied with activations: the weights of linear and convolution
    layers (1d, 2d, 3d, also transposed) and of layers derived from them, those of recurrent layers and cells, the
    projections of `nn.MultiheadAttention`, and every `weight` with two axes or more of a layer of any other class (bilinear,
    graph convolutions, linear layers of other libraries). A shared weight has its first name; one that
    `torch.nn.utils.prune` or `torch.nn.utils.parametrize` replaced has the name of its original.

    Biases, normalisation layers and embeddings are not pruned, nor is a linear weight tied to an embedding; other
    parameters, such as matrices that a module uses under names of its own, have to be named.

    Example:
        >>> prunable(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)))
        ('0.weight', '2.weight')
        >>> prunable(nn.LSTM(3, 4))
        ('weight_ih_l0', 'weight_hh_l0')
    """
    wanted, embedded = set(), set()
    for module in model.modules():
        embedded |= {id(tensor) for tensor in lookups_of(module)}
        wanted |= {id(tensor) for tensor in matrices_of(module)}
    wanted -= embedded
    return tuple(name for name, tensor in model.named_parameters() if id(tensor) in wanted)


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
    from lightning_fairprune._model.hidden import check_layers  # when a criterion runs

    check_layers(model, found)
    return found


def full_precision(tensor: Tensor) -> Tensor:
    """Returns a detached float32 tensor, float64 for a float64 one."""
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))
