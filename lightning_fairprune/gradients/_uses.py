"""What the calls of the layers add up to: a parameter's gradient is the sum over all its uses."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_fairprune._model.batches import Batch
from lightning_fairprune.gradients._layers import Rule, norm2, rule_of, slices, wide


class Surprise(Exception):
    """A layer was called otherwise than in the trial, or its input changed since: its rule does not hold."""


@dataclass(frozen=True, slots=True)
class Call:
    """Shapes of input and output of one call (empty for no tensor), and a zero of the output's dtype and device."""

    layer: nn.Module
    x: tuple[int, ...]
    y: tuple[int, ...]
    zero: Tensor


@dataclass(frozen=True, slots=True)
class _Use:
    rule: Rule
    layer: nn.Module
    parameter: Tensor
    x: Tensor
    g: Tensor


@dataclass(frozen=True, slots=True)
class Layers:
    """The layers whose parameters use a rule, and the bytes of temporary `memory`.

    `names` maps layer -> its parameters by their names in it -> their names in the model; `axes` maps it to the axis of the
    samples in its input, None if the trial did not call it.
    """

    names: Mapping[nn.Module, Mapping[str, str]]
    axes: Mapping[nn.Module, int | None]
    memory: int


class Uses:
    """Collects inputs and output gradients of layers; keeps those of parameters with several uses."""

    def __init__(self, layers: Layers) -> None:
        self.layers, self.memory = layers.names, layers.memory
        self.calls: Counter[str] = Counter()
        self._terms: list[Tensor] = []
        self._shared: defaultdict[str, list[_Use]] = defaultdict(list)

    def expect(self, layer: nn.Module) -> None:
        """Notes a call; all of them come before the first gradient."""
        self.calls.update(self.layers[layer].values())

    def add(self, layer: nn.Module, x: Tensor, g: Tensor) -> None:
        """Takes one call's input and the gradient of its output, samples first."""
        for local, name in self.layers[layer].items():
            rule = rule_of(layer, local)
            assert rule is not None, "a layer without a rule was planned"
            if self.calls[name] > 1:
                self._shared[name].append(_Use(rule, layer, layer.get_parameter(local), x, g))
            else:
                self.add_alone(rule, layer, x, g)

    def add_alone(self, rule: Rule, layer: nn.Module, x: Tensor, g: Tensor) -> None:
        self._terms.append(norm2(rule, layer, x, g, self.memory))

    def norms2(self, like: Tensor) -> Tensor:
        """Returns the squared norms of all parameters together, [B]."""
        terms = [*self._terms, *(self._together(uses) for uses in self._shared.values())]
        zero = wide(torch.zeros_like(like))
        return torch.stack([zero, *(term.to(zero) for term in terms)]).sum(0)

    def _together(self, uses: list[_Use]) -> Tensor:
        each = sum(u.rule.scratch(u.layer, u.x, u.g) + 2 * u.parameter.numel() for u in uses)
        pieces = []
        for i in slices(len(uses[0].x), each * uses[0].g.element_size(), self.memory):
            gradient = uses[0].rule.gradient(uses[0].layer, uses[0].x[i], uses[0].g[i])
            for use in uses[1:]:
                gradient += use.rule.gradient(use.layer, use.x[i], use.g[i])
            pieces.append(wide(gradient).flatten(1).square().sum(1))
        return torch.cat(pieces)


def input_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    return args[0] if args else next(iter(kwargs.values()), None)


def output_of(output: Any) -> Any:
    """Returns the output; of attention, the first of outputs and weights."""
    return output[0] if isinstance(output, tuple) and output else output


def watched(model: nn.Module, layers: Iterable[nn.Module], batch: Batch) -> tuple[list[Call], Any]:
    """Returns all calls of some layers in order, and the model's outputs."""
    calls: list[Call] = []
    enabled = torch.is_grad_enabled()

    def called(layer: nn.Module, args: tuple[Any, ...], kwargs: Any, output: Any) -> None:
        x, y = input_of(args, kwargs), output_of(output)
        if torch.is_grad_enabled() != enabled:
            return  # some checkpointed blocks run without gradients at first
        if isinstance(x, Tensor) and isinstance(y, Tensor):
            calls.append(Call(layer, tuple(x.shape), tuple(y.shape), y.detach().new_zeros(())))
        else:
            calls.append(Call(layer, (), (), torch.zeros(())))

    handles = [
        layer.register_forward_hook(called, prepend=True, with_kwargs=True) for layer in layers
    ]
    try:
        return calls, batch.through(model)
    finally:
        for handle in handles:
            handle.remove()
