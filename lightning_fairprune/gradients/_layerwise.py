"""One forward and one backward pass for a batch; each layer's gradient norms are taken on the way."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_fairprune.gradients import _attention
from lightning_fairprune.gradients._batch import Batch, Loss
from lightning_fairprune.gradients._layers import Rule, norm2, rule_of, slices

__all__ = ["Surprise", "input_of", "layerwise", "output_of"]


class Surprise(Exception):
    """A layer was called otherwise than in the trial, so that its rule may not hold."""


@dataclass(frozen=True, slots=True)
class _Use:
    """One call of a layer: its input and the gradient of its output, samples first."""

    rule: Rule
    layer: nn.Module
    x: Tensor
    g: Tensor
    parameter: Tensor


def input_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Returns the first argument of a call, however it was given."""
    return args[0] if args else next(iter(kwargs.values()), None)


def output_of(output: Any) -> Any:
    """Returns the output; of attention, the first of outputs and weights."""
    return output[0] if isinstance(output, tuple) and output else output


def layerwise(
    model: nn.Module,
    layers: Mapping[nn.Module, Mapping[str, str]],
    axes: Mapping[nn.Module, int | None],
    batch: Batch,
    loss: Loss,
    memory: int,
) -> tuple[Tensor, Tensor]:
    """Returns losses and squared gradient norms, [B] each.

    Args:
        model: the model, none of whose parameters requires a gradient: none of the whole batch is computed.
        layers: layer -> its parameters by the names they have in it -> their names in the model.
        axes: layer -> where the samples are in its input; None if it was not called in the trial.
        batch: the samples.
        loss: loss of each.
        memory: bytes of temporary memory.

    Raises:
        Surprise: if a layer is called otherwise than in the trial.
    """
    tape = _Tape(layers, axes, batch.size, memory)
    with tape.watching():
        losses = loss.of_each(batch.through(model), batch.target, batch.size)
        tape.forward = False
        if tape.anchors and losses.requires_grad:
            torch.autograd.grad(losses.sum(), tape.anchors, allow_unused=True)
    return losses.detach(), tape.norms2(losses.detach())


class _Tape:
    """What hooks on the layers collect in one forward and backward pass."""

    def __init__(
        self,
        layers: Mapping[nn.Module, Mapping[str, str]],
        axes: Mapping[nn.Module, int | None],
        size: int,
        memory: int,
    ) -> None:
        self.layers, self.axes, self.size, self.memory = layers, axes, size, memory
        self.forward = True  # checkpointed blocks run forward once more during the backward pass
        self.anchors: list[Tensor] = []
        self.calls: Counter[str] = Counter()
        self.terms: list[Tensor] = []
        self.shared: defaultdict[str, list[_Use]] = defaultdict(list)

    @contextmanager
    def watching(self) -> Iterator[None]:
        # First of all hooks: others may change the output, which would no longer be the layer's own.
        handles = [
            layer.register_forward_hook(self._called, prepend=True, with_kwargs=True)
            for layer in self.layers
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def norms2(self, like: Tensor) -> Tensor:
        """Returns the squared norms of all parameters together, [B]."""
        terms = [*self.terms, *(self._together(uses) for uses in self.shared.values())]
        return torch.stack([torch.zeros_like(like), *(t.to(like) for t in terms)]).sum(0)

    def _called(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        y = output_of(output)
        replaced = None
        if not y.requires_grad:  # nothing before it does: the backward pass ends here
            anchor = y.new_zeros(()).requires_grad_()
            self.anchors.append(anchor)
            y = y + anchor
            replaced = y if output_of(output) is output else (y, *output[1:])
        if self.forward and torch.is_grad_enabled():
            self._listen(layer, args, kwargs, y)
        return replaced

    def _listen(self, layer: nn.Module, args: Any, kwargs: Any, y: Tensor) -> None:
        x, axis = input_of(args, kwargs), self.axes[layer]
        if axis is None or not axis < x.ndim or {x.shape[axis], y.shape[axis]} != {self.size}:
            raise Surprise
        self.calls.update(self.layers[layer].values())
        whole = isinstance(layer, nn.MultiheadAttention)
        kept = [(x.detach(), args, kwargs) if whole else (x.detach(), (), {})]
        version = x._version

        def collect(g: Tensor) -> None:
            x, args, kwargs = kept.pop()  # the hook lives as long as the graph, the input need not
            if x._version != version:
                raise RuntimeError(
                    f"the input of a {type(layer).__name__} was changed in place after the layer had used "
                    "it, and training such a model fails, too; use the operation that is not in place."
                )
            if whole:
                self._collect_attention(layer, args, kwargs, g)
            else:
                self._collect(layer, x.movedim(axis, 0), g.movedim(axis, 0))

        y.register_hook(collect)  # type: ignore[no-untyped-call]

    def _collect_attention(self, layer: nn.Module, args: Any, kwargs: Any, g: Tensor) -> None:
        for name, rule, x, grad in _attention.projections(layer, args, kwargs, g):
            if name in self.layers[layer]:
                self.terms.append(norm2(rule, layer, x, grad, self.memory))

    def _collect(self, layer: nn.Module, x: Tensor, g: Tensor) -> None:
        for local, name in self.layers[layer].items():
            rule = rule_of(layer, local)
            assert rule is not None, "a layer without a rule was planned"
            if self.calls[name] > 1:
                self.shared[name].append(_Use(rule, layer, x, g, layer.get_parameter(local)))
            else:
                self.terms.append(norm2(rule, layer, x, g, self.memory))

    def _together(self, uses: list[_Use]) -> Tensor:
        """Returns the squared norms of a parameter with several uses: gradients add up before the square."""
        each = sum(u.rule.scratch(u.layer, u.x, u.g) + 2 * u.parameter.numel() for u in uses)
        pieces = []
        for i in slices(self.size, each * uses[0].g.element_size(), self.memory):
            gradients = [u.rule.gradient(u.layer, u.x[i], u.g[i]) for u in uses]
            pieces.append(torch.stack(gradients).sum(0).flatten(1).square().sum(1))
        return torch.cat(pieces)
