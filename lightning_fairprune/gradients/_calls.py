"""Calls of torch's functions that use parameters, with the rule for the gradient of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_fairprune.gradients._layers import (
    Convolution,
    Embedding,
    Rule,
    linear_bias,
    linear_weight,
    per_channel,
    places,
    split,
)


class Call(NamedTuple):
    """A function `run` of `x`, once its first `merged` axes are one, the samples being the first of them.

    `parts`: the other tensors that it uses, each with its rule, None for statistics.
    """

    x: Tensor
    run: Callable[[Tensor], Tensor]
    parts: tuple[tuple[Tensor | None, Rule | None], ...]
    merged: int = 1


def _fixed(tensor: Tensor | None) -> Any:
    return None if tensor is None else tensor.detach()


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Call | None:
    if weight.ndim != 2:
        return None
    w, b = _fixed(weight), _fixed(bias)
    # Rows in one axis, so that the output is no view, whose hook a change in place would lose.
    return Call(
        input,
        lambda x: F.linear(x, w, b),
        ((weight, linear_weight), (bias, linear_bias)),
        input.ndim,
    )


def _each(value: int | Sequence[int], axes: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * axes if len(values) == 1 else values


def _conv(axes: int) -> Callable[..., Call | None]:
    function = (F.conv1d, F.conv2d, F.conv3d)[axes - 1]

    def call(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Call | None:
        if input.ndim != axes + 2:
            return None
        w, b = _fixed(weight), _fixed(bias)
        strides, dilations = _each(stride, axes), _each(dilation, axes)
        pads: list[int] = []
        for i in range(axes):
            if padding == "same":
                total = dilations[i] * (weight.shape[2 + i] - 1)
                pads = [total // 2, total - total // 2, *pads]
            else:
                pads = [*(2 * [0 if padding == "valid" else _each(padding, axes)[i]]), *pads]
        conv = Convolution(weight.shape, strides, tuple(pads), dilations, groups)

        def run(x: Tensor) -> Tensor:
            return function(x, w, b, strides, padding, dilations, groups)

        weights = Rule(conv.gradient, conv.norm2, conv.scratch)
        return Call(input, run, ((weight, weights), (bias, _channel_bias)), 2)

    return call


_channel_bias = Rule(lambda x, g: per_channel(g), reads=False)


def _standardised(
    plain: Callable[[Tensor], Tensor],
    whole: Callable[[Tensor], Tensor],
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    statistics: tuple[Tensor | None, ...] = (),
    trailing: tuple[int, ...] = (),
) -> Call:
    """Returns a call of `whole`, w * x_hat + b, where `plain` gives x_hat, which does not depend on w and b."""
    if trailing:  # one weight for each feature of the last axes

        def total(values: Tensor) -> Tensor:
            return values.reshape(len(values), -1, *trailing).sum(1)

        def normal(x: Tensor) -> Tensor:
            return plain(x)

    else:  # one for each channel

        def total(values: Tensor) -> Tensor:
            return per_channel(values)

        def normal(x: Tensor) -> Tensor:
            return split(plain(x.flatten(0, 1)), x.shape[:2])

    weights = Rule(
        lambda x, g: total(g * normal(x)), scratch=lambda x, g: 2 * math.prod(x.shape[1:])
    )
    of_bias = Rule(lambda x, g: total(g), reads=False)
    fixed = tuple((tensor, None) for tensor in statistics)
    return Call(x, whole, ((weight, weights), (bias, of_bias), *fixed), 1 if trailing else 2)


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Call | None:
    if training or running_mean is None or running_var is None or input.ndim < 2:
        return None
    w, b = _fixed(weight), _fixed(bias)
    return _standardised(
        lambda x: F.batch_norm(x, running_mean, running_var, None, None, False, 0.0, eps),
        lambda x: F.batch_norm(x, running_mean, running_var, w, b, False, 0.0, eps),
        *(input, weight, bias, (running_mean, running_var)),
    )


def _instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Call | None:
    if (use_input_stats and running_mean is not None) or input.ndim < 3:
        return None
    w, b = _fixed(weight), _fixed(bias)
    which = (running_mean, running_var)
    return _standardised(
        lambda x: F.instance_norm(x, *which, None, None, use_input_stats, 0.0, eps),
        lambda x: F.instance_norm(x, *which, w, b, use_input_stats, 0.0, eps),
        *(input, weight, bias, which),
    )


def _group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Call | None:
    if input.ndim < 2:
        return None
    w, b = _fixed(weight), _fixed(bias)
    return _standardised(
        lambda x: F.group_norm(x, num_groups, None, None, eps),
        lambda x: F.group_norm(x, num_groups, w, b, eps),
        *(input, weight, bias, ()),
    )


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Call:
    w, b, shape = _fixed(weight), _fixed(bias), tuple(normalized_shape)
    return _standardised(
        lambda x: F.layer_norm(x, shape, None, None, eps),
        lambda x: F.layer_norm(x, shape, w, b, eps),
        *(input, weight, bias),
        trailing=shape,
    )


def _rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Call:
    w, shape = _fixed(weight), tuple(normalized_shape)
    return _standardised(
        lambda x: F.rms_norm(x, shape, None, eps),
        lambda x: F.rms_norm(x, shape, w, eps),
        *(input, weight, None),
        trailing=shape,
    )


def _embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Call | None:
    if max_norm is not None or scale_grad_by_freq:
        return None
    w = weight.detach()
    if padding_idx is not None and padding_idx < 0:
        padding_idx += len(weight)
    rule = Embedding(len(weight), padding_idx)
    return Call(
        input,
        lambda x: F.embedding(x, w),
        ((weight, Rule(rule.gradient, rule.norm2, rule.scratch)),),
    )


def _addmm(
    input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1
) -> Call | None:
    """A linear layer whose weight is [D, O], as GPT-2 has it."""
    if beta != 1 or alpha != 1 or input.ndim != 1 or len(input) != mat2.shape[1]:
        return None
    b, w = input.detach(), mat2.detach()
    weights = Rule(
        lambda x, g: places(x).mT @ places(g),
        linear_weight.norm2,
        linear_weight.scratch,
    )
    return Call(
        mat1,
        lambda x: torch.addmm(b, x, w),
        ((mat2, weights), (input, linear_bias)),
        mat1.ndim,
    )


# By the function that torch calls; whatever else has a parameter takes a copy of it for each sample.
CALLS: dict[Any, Callable[..., Call | None]] = {
    F.linear: _linear,
    F.conv1d: _conv(1),
    F.conv2d: _conv(2),
    F.conv3d: _conv(3),
    F.batch_norm: _batch_norm,
    F.instance_norm: _instance_norm,
    F.group_norm: _group_norm,
    F.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    F.embedding: _embedding,
    torch.addmm: _addmm,
}
