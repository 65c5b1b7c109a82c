"""Per-sample gradients of torch's own layers, from their inputs and the gradients of their outputs.

Here x is the input of a layer and g the gradient of the sample's loss with respect to its output, both with the
samples along the first axis. T counts places: tokens, pixels, windows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_CACHE = 2**24  # on a CPU, pieces of 4 to 16 MB took two thirds of the time of pieces of 256 MB
_Layer = Any  # modules of torch, whose attributes mypy would take for Tensor | Module


@dataclass(frozen=True, slots=True)
class Rule:
    """Functions of (layer, x, g) for the gradient of a layer with respect to one of its parameters.

    `gradient` returns it for each sample, [b, *shape of the parameter]; `norm2` the squared norms [b] by a shorter way, or
    None; `scratch` how many temporary numbers that takes per sample. `anywhere`: the samples may be along any axis.
    """

    gradient: Callable[[_Layer, Tensor, Tensor], Tensor]
    norm2: Callable[[_Layer, Tensor, Tensor], Tensor] | None
    scratch: Callable[[_Layer, Tensor, Tensor], int]
    anywhere: bool = False


def slices(size: int, each: int, memory: int) -> Iterator[slice]:
    """Yields pieces of a batch, of `each` bytes a sample, that fit into `memory`."""
    step = max(1, memory // max(1, each))
    for start in range(0, size, step):
        yield slice(start, start + step)


def wide(x: Tensor) -> Tensor:
    """Returns half precision as float32, whose squares neither overflow nor vanish."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def norm2(rule: Rule, layer: _Layer, x: Tensor, g: Tensor, memory: int) -> Tensor:
    """Returns the squared gradient norms [B], a piece of the batch at a time."""
    short = rule.norm2 or (lambda *args: wide(rule.gradient(*args)).flatten(1).square().sum(1))
    each = rule.scratch(layer, x, g) * g.element_size()
    if g.device.type == "cpu":
        memory = min(memory, _CACHE)
    return torch.cat([short(layer, x[i], g[i]) for i in slices(len(x), each, memory)])


def outer_norm2(a: Tensor, g: Tensor) -> Tensor:
    r"""Returns `||sum_t g_t a_t^T||^2` of a [b, n, D, T] and g [b, n, O, T], summed over n, [b].

    Either the sum itself (T D O products), or `sum_{tu} (a_t . a_u) (g_t . g_u)`, whose two matrices [T, T]
    take T^2 (D + O): Goodfellow, "Efficient Per-Example Gradient Computations" (arXiv 1510.01799), for T = 1;
    Li et al., "Large Language Models Can Be Strong Differentially Private Learners" (ICLR 2022, 4), for any T.
    """
    a, g = wide(a), wide(g)
    if a.shape[-1] == 1:
        return (a.square().sum((2, 3)) * g.square().sum((2, 3))).sum(1)
    if _pairwise(a.shape[-1], a.shape[-2], g.shape[-2]):
        return ((a.mT @ a) * (g.mT @ g)).sum((1, 2, 3))
    return (g @ a.mT).square().sum((1, 2, 3))


def _pairwise(places: int, inputs: int, outputs: int) -> bool:
    return places * (inputs + outputs) < inputs * outputs


def _outer_scratch(places: int, inputs: int, outputs: int) -> int:
    return 2 * places**2 if _pairwise(places, inputs, outputs) else inputs * outputs


# Linear: y_t = W x_t + b


def _places(x: Tensor) -> Tensor:
    """[B, ..., D] -> [B, T, D]."""
    return x.reshape(len(x), -1, x.shape[-1])


def _linear_scratch(_: _Layer, x: Tensor, g: Tensor) -> int:
    return _outer_scratch(_places(x).shape[1], x.shape[-1], g.shape[-1])


linear_rule = Rule(
    lambda _, x, g: _places(g).mT @ _places(x),
    lambda _, x, g: outer_norm2(_places(x).mT.unsqueeze(1), _places(g).mT.unsqueeze(1)),
    _linear_scratch,
    anywhere=True,
)
bias_rule = Rule(lambda _, x, g: _places(g).sum(1), None, lambda *_: 0, anywhere=True)


# Convolution: a linear layer on windows of the input


def _windows(conv: _Layer, x: Tensor) -> Tensor:
    """[b, C, *in] -> [b, groups, C / groups * kernel, T], the input of each place of the output."""
    pads: list[int] = []
    for i, (kernel, dilation) in enumerate(zip(conv.kernel_size, conv.dilation, strict=True)):
        if conv.padding == "same":
            total = dilation * (kernel - 1)
            pads = [total // 2, total - total // 2, *pads]
        else:
            pads = [*(2 * [0 if conv.padding == "valid" else conv.padding[i]]), *pads]
    if any(pads):
        mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
        x = F.pad(x, pads, mode=mode)
    axes = len(conv.kernel_size)
    for i in range(axes):
        span = conv.dilation[i] * (conv.kernel_size[i] - 1) + 1
        x = x.unfold(2 + i, span, conv.stride[i])[..., :: conv.dilation[i]]
    # [b, C, *out, *kernel] -> [b, C, *kernel, *out]
    x = x.permute(0, 1, *range(2 + axes, 2 + 2 * axes), *range(2, 2 + axes))
    rows = conv.in_channels // conv.groups * math.prod(conv.kernel_size)
    return x.reshape(len(x), conv.groups, rows, -1)


def _grouped(conv: _Layer, g: Tensor) -> Tensor:
    """[b, O, *out] -> [b, groups, O / groups, T]."""
    return g.reshape(len(g), conv.groups, conv.out_channels // conv.groups, -1)


def _conv_gradient(conv: _Layer, x: Tensor, g: Tensor) -> Tensor:
    return (_grouped(conv, g) @ _windows(conv, x).mT).reshape(len(x), *conv.weight.shape)


def _conv_scratch(conv: _Layer, x: Tensor, g: Tensor) -> int:
    places = g[0, 0].numel()
    groups: int = conv.groups
    outputs, inputs = conv.out_channels // groups, conv.weight[0].numel()
    found: int = groups * (places * inputs + _outer_scratch(places, inputs, outputs))
    return found


_conv_rule = Rule(
    _conv_gradient,
    lambda conv, x, g: outer_norm2(_windows(conv, x), _grouped(conv, g)),
    _conv_scratch,
)


# Normalisation: y = w * x_hat + b, where x_hat does not depend on w and b


def _standardised(norm: _Layer, x: Tensor) -> Tensor:
    if isinstance(norm, nn.GroupNorm):
        return F.group_norm(x, norm.num_groups, None, None, norm.eps)
    if isinstance(norm, nn.LayerNorm):
        return F.layer_norm(x, norm.normalized_shape, None, None, norm.eps)
    if isinstance(norm, nn.RMSNorm):
        return F.rms_norm(x, norm.normalized_shape, None, norm.eps)
    mean, var = norm.running_mean, norm.running_var
    if isinstance(norm, nn.modules.instancenorm._InstanceNorm):
        return F.instance_norm(x, mean, var, None, None, mean is None, 0.0, norm.eps)
    return F.batch_norm(x, mean, var, None, None, False, 0.0, norm.eps)


def _per_channel(x: Tensor) -> Tensor:
    """[b, C, *] -> [b, C], the sum over places."""
    return x.reshape(*x.shape[:2], -1).sum(2)


def _per_feature(norm: _Layer, x: Tensor) -> Tensor:
    """[b, ..., *shape] -> [b, *shape], the sum over places."""
    return x.reshape(len(x), -1, *norm.normalized_shape).sum(1)


def _size(_: _Layer, x: Tensor, __: Tensor) -> int:
    return 2 * x[0].numel()


_channel_weight = Rule(lambda norm, x, g: _per_channel(g * _standardised(norm, x)), None, _size)
_channel_bias = Rule(lambda _, x, g: _per_channel(g), None, lambda *_: 0)
_feature_weight = Rule(
    lambda norm, x, g: _per_feature(norm, g * _standardised(norm, x)), None, _size, anywhere=True
)
_feature_bias = Rule(lambda norm, x, g: _per_feature(norm, g), None, lambda *_: 0, anywhere=True)


# Embedding: y_t = W[x_t]


def _embedded(layer: _Layer, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Returns tokens [b, T] and gradients [b, T, D], which are 0 for padding."""
    tokens, g = x.reshape(len(x), -1), _places(g)
    if layer.padding_idx is not None:
        g = g.masked_fill((tokens == layer.padding_idx).unsqueeze(2), 0.0)
    return tokens, g


def _embedding_gradient(layer: _Layer, x: Tensor, g: Tensor) -> Tensor:
    tokens, g = _embedded(layer, x, g)
    row = tokens + layer.num_embeddings * torch.arange(len(x), device=x.device).unsqueeze(1)
    flat = g.new_zeros(len(x) * layer.num_embeddings, g.shape[-1])
    return flat.index_add_(0, row.flatten(), g.flatten(0, 1)).view(len(x), -1, g.shape[-1])


def _embedding_norm2(layer: _Layer, x: Tensor, g: Tensor) -> Tensor:
    # A token that comes twice has one row, with the sum of its gradients: pairs of equal tokens count.
    tokens, g = _embedded(layer, x, wide(g))
    same = tokens.unsqueeze(1) == tokens.unsqueeze(2)
    return ((g @ g.mT) * same).sum((1, 2))


def _embedding_scratch(_: _Layer, x: Tensor, g: Tensor) -> int:
    return g[0].numel() + 3 * x[0].numel() ** 2


_embedding_rule = Rule(_embedding_gradient, _embedding_norm2, _embedding_scratch, anywhere=True)

_CHANNELS = {"weight": _channel_weight, "bias": _channel_bias}
_FEATURES = {"weight": _feature_weight, "bias": _feature_bias}
_CONV = {"weight": _conv_rule, "bias": _channel_bias}

RULES: dict[type[nn.Module], dict[str, Rule]] = {
    nn.Linear: {"weight": linear_rule, "bias": bias_rule},
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), _CONV),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm), _CHANNELS),
    **dict.fromkeys((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), _CHANNELS),
    nn.GroupNorm: _CHANNELS,
    nn.LayerNorm: _FEATURES,
    nn.RMSNorm: {"weight": _feature_weight},
    nn.Embedding: {"weight": _embedding_rule},
}


def rule_of(layer: nn.Module, name: str) -> Rule | None:
    """Returns the rule for a parameter of a layer; None if the layer may do something else with it.

    A subclass, a replaced forward, a weight computed from others (weight_norm, parametrizations, pruning masks) and
    options that make a gradient depend on the batch have no rule.
    """
    rule = RULES.get(type(layer), {}).get(name)
    if rule is None or "forward" in vars(layer):
        return None
    if isinstance(layer, nn.Embedding) and (layer.max_norm or layer.scale_grad_by_freq):
        return None
    if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.running_mean is None:
        return None
    return rule
