"""Multi-head attention, whose projections are used without a layer of their own being called."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_fairprune.gradients._layers import Rule, bias_rule, linear_rule


class Projection(NamedTuple):
    """A linear layer inside: gradient of `name` = sum over tokens of g x^T (weight) or g (bias)."""

    name: str
    rule: Rule
    x: Tensor
    g: Tensor


def supported(module: nn.Module) -> bool:
    return (
        type(module) is nn.MultiheadAttention
        and "forward" not in vars(module)
        and type(module.out_proj) is nn.modules.linear.NonDynamicallyQuantizableLinear
        and module._qkv_same_embed_dim
        and module.bias_k is None
        and not module.add_zero_attn
    )


def samples_first(module: Any, x: Tensor) -> Tensor:
    """[B, T, E] whichever way round the module takes its inputs."""
    return x if module.batch_first else x.transpose(0, 1)


def projections(
    module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], g: Tensor
) -> list[Projection]:
    """Returns the projections of one call, given the gradient of its output.

    The attention between them is computed again, by torch's own function with identity matrices as weights, and
    differentiated with respect to queries, keys and values.
    """
    call = inspect.signature(nn.MultiheadAttention.forward).bind(module, *args, **kwargs).arguments
    inputs = [samples_first(module, call[name].detach()) for name in ("query", "key", "value")]
    weights = module.in_proj_weight.detach().chunk(3)
    has_bias = module.in_proj_bias is not None
    biases = module.in_proj_bias.detach().chunk(3) if has_bias else (None, None, None)
    g = samples_first(module, g)
    eye = torch.eye(module.embed_dim, dtype=g.dtype, device=g.device)
    with torch.enable_grad():
        projected = [
            F.linear(x, w, b).transpose(0, 1).requires_grad_()
            for x, w, b in zip(inputs, weights, biases, strict=True)
        ]
        mixed, _ = F.multi_head_attention_forward(
            *(projected[0], projected[1], projected[2], module.embed_dim, module.num_heads),
            in_proj_weight=None,
            in_proj_bias=None,
            bias_k=None,
            bias_v=None,
            add_zero_attn=False,
            dropout_p=0.0,
            out_proj_weight=eye,
            out_proj_bias=None,
            training=False,
            key_padding_mask=call.get("key_padding_mask"),
            need_weights=False,
            attn_mask=call.get("attn_mask"),
            use_separate_proj_weight=True,
            q_proj_weight=eye,
            k_proj_weight=eye,
            v_proj_weight=eye,
        )
        inside = (g @ module.out_proj.weight.detach()).transpose(0, 1)
        grads = torch.autograd.grad(mixed, projected, inside)
    mixed = mixed.detach().transpose(0, 1)
    found = [
        Projection("out_proj.weight", linear_rule, mixed, g),
        Projection("out_proj.bias", bias_rule, mixed, g),
    ]
    # Queries, keys and values have rows of their own in the packed weight: their squared norms add up.
    for x, grad in zip(inputs, grads, strict=True):
        found.append(Projection("in_proj_weight", linear_rule, x, grad.transpose(0, 1)))
        found.append(Projection("in_proj_bias", bias_rule, x, grad.transpose(0, 1)))
    return found
