"""Per-sample gradients of torch's own functions, from their inputs and the gradients of their outputs.

Here x is the input of a call and g the gradient of the sample's loss with respect to its output, both with the
samples along the first axis. T counts places: tokens, pixels, windows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

_CACHE = 2**24  # on a CPU, pieces of 4 to 16 MB took two thirds of the time of pieces of 256 MB


@dataclass(frozen=True, slots=True)
class Rule:
    """Functions of (x, g) for the gradient of one call with respect to one of its parameters.

    `gradient` returns it for each sample, [b, *shape of the parameter]; `norm2` the squared norms [b] by a shorter way, or
    None; `scratch` how many temporary numbers that takes per sample. `outer`: it is `sum_t g_t x_t^T`, so that several
    calls are one call with more places. `reads`: it needs x.
    """

    gradient: Callable[[Tensor, Tensor], Tensor]
    norm2: Callable[[Tensor, Tensor], Tensor] | None = None
    scratch: Callable[[Tensor, Tensor], int] = lambda x, g: 0
    outer: bool = False
    reads: bool = True


def slices(size: int, each: int, memory: int) -> Iterator[slice]:
    """Yields pieces of a batch, of `each` bytes a sample, that fit into `memory`."""
    step = max(1, memory // max(1, each))
    for start in range(0, size, step):
        yield slice(start, start + step)


def wide(x: Tensor) -> Tensor:
    """Returns half precision as float32, whose squares neither overflow nor vanish."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def squared(x: Tensor) -> Tensor:
    """[b, ...] -> [b], the sum of the squares."""
    norm: Tensor = torch.linalg.vector_norm(wide(x).flatten(1), dim=1)
    return norm.square()


def split(x: Tensor, lead: tuple[int, ...]) -> Tensor:
    """[a b ..., *] -> [a, b, ..., *], a view."""
    return x if len(lead) == 1 else cast(Tensor, x.unflatten(0, lead))  # type: ignore[no-untyped-call]


def norm2(rule: Rule, x: Tensor, g: Tensor, memory: int) -> Tensor:
    """Returns the squared gradient norms [B], a piece of the batch at a time."""
    short = rule.norm2 or (lambda x, g: squared(rule.gradient(x, g)))
    each = rule.scratch(x, g) * g.element_size()
    if g.device.type == "cpu":
        memory = min(memory, _CACHE)
    return torch.cat([short(x[i], g[i]) for i in slices(len(x), each, memory)])


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
    return squared(g @ a.mT)


def _pairwise(places: int, inputs: int, outputs: int) -> bool:
    return places * (inputs + outputs) < inputs * outputs


def _outer_scratch(places: int, inputs: int, outputs: int) -> int:
    return 2 * places**2 if _pairwise(places, inputs, outputs) else inputs * outputs


# Linear: y_t = W x_t + b


def places(x: Tensor) -> Tensor:
    """[B, ..., D] -> [B, T, D]."""
    return x.reshape(len(x), -1, x.shape[-1])


linear_weight = Rule(
    lambda x, g: places(g).mT @ places(x),
    lambda x, g: outer_norm2(places(x).mT.unsqueeze(1), places(g).mT.unsqueeze(1)),
    lambda x, g: _outer_scratch(places(x).shape[1], x.shape[-1], g.shape[-1]),
    outer=True,
)
linear_bias = Rule(lambda x, g: places(g).sum(1), reads=False)


# Convolution: a linear layer on windows of the input


@dataclass(frozen=True, slots=True)
class Convolution:
    """x is [b, n, C, *in], g [b, n, O, *out]: a sample may have n images, such as the frames of a video."""

    shape: torch.Size  # of the weight
    stride: tuple[int, ...]
    pads: tuple[int, ...]  # as F.pad takes them, last axis first
    dilation: tuple[int, ...]
    groups: int

    def windows(self, x: Tensor) -> Tensor:
        """[b, n, C, *in] -> [b, groups, C / groups * kernel, T], the input of each place of the output."""
        b, n = x.shape[:2]
        x = x.flatten(0, 1)
        if any(self.pads):
            x = F.pad(x, self.pads)
        axes = len(self.shape) - 2
        for i in range(axes):
            span = self.dilation[i] * (self.shape[2 + i] - 1) + 1
            x = x.unfold(2 + i, span, self.stride[i])[..., :: self.dilation[i]]
        # [b n, C, *out, *kernel] -> [b, C, *kernel, n, *out]
        x = split(x, (b, n)).transpose(1, 2)
        x = x.permute(0, 1, *range(3 + axes, 3 + 2 * axes), *range(2, 3 + axes))
        return x.reshape(b, self.groups, math.prod(self.shape[1:]), -1)

    def grouped(self, g: Tensor) -> Tensor:
        """[b, n, O, *out] -> [b, groups, O / groups, T]."""
        return g.transpose(1, 2).reshape(len(g), self.groups, self.shape[0] // self.groups, -1)

    def gradient(self, x: Tensor, g: Tensor) -> Tensor:
        return (self.grouped(g) @ self.windows(x).mT).reshape(len(x), *self.shape)

    def norm2(self, x: Tensor, g: Tensor) -> Tensor:
        return outer_norm2(self.windows(x), self.grouped(g))

    def scratch(self, x: Tensor, g: Tensor) -> int:
        inputs, outputs = math.prod(self.shape[1:]), self.shape[0] // self.groups
        each = g[0, :, 0].numel()
        return self.groups * (each * inputs + _outer_scratch(each, inputs, outputs))


def per_channel(x: Tensor) -> Tensor:
    """[b, n, C, *] -> [b, C], the sum over places."""
    return x.reshape(*x.shape[:3], -1).sum((1, 3))


# Embedding: y_t = W[x_t]


@dataclass(frozen=True, slots=True)
class Embedding:
    rows: int
    padding: int | None

    def _read(self, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """Returns tokens [b, T] and gradients [b, T, D], which are 0 for padding."""
        tokens, g = x.reshape(len(x), -1), places(g)
        if self.padding is not None:
            g = g.masked_fill((tokens == self.padding).unsqueeze(2), 0.0)
        return tokens, g

    def gradient(self, x: Tensor, g: Tensor) -> Tensor:
        tokens, g = self._read(x, g)
        row = tokens + self.rows * torch.arange(len(x), device=x.device).unsqueeze(1)
        flat = g.new_zeros(len(x) * self.rows, g.shape[-1])
        return flat.index_add_(0, row.flatten(), g.flatten(0, 1)).view(len(x), -1, g.shape[-1])

    def norm2(self, x: Tensor, g: Tensor) -> Tensor:
        # A token that comes twice has one row, with the sum of its gradients: pairs of equal tokens count.
        tokens, g = self._read(x, wide(g))
        same = tokens.unsqueeze(1) == tokens.unsqueeze(2)
        return ((g @ g.mT) * same).sum((1, 2))

    @staticmethod
    def scratch(x: Tensor, g: Tensor) -> int:
        return g[0].numel() + 3 * x[0].numel() ** 2
