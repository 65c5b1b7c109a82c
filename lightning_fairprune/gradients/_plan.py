"""How to get at each parameter's per-sample gradients, found out and checked on two samples."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_fairprune.gradients import _attention
from lightning_fairprune.gradients._batch import Batch, Loss
from lightning_fairprune.gradients._layers import rule_of
from lightning_fairprune.gradients._layerwise import Surprise, input_of, layerwise, output_of
from lightning_fairprune.gradients._plain import one_by_one, vectorised

__all__ = ["Plan", "make_plan"]

_Shapes = dict[nn.Module, list[tuple[torch.Size, torch.Size]]]


@dataclass(frozen=True, slots=True)
class Plan:
    """Which parameters go which way.

    Args:
        loss: how to get the loss of each sample.
        layers: layer -> its parameters by their names in it -> their names in the model: by a rule.
        axes: layer -> where the samples are in its input; None if the trial did not call it.
        rest: names of the other parameters: by torch.func.
        batched: False if torch.func cannot do it: all parameters, one sample at a time.
    """

    loss: Loss
    layers: Mapping[nn.Module, Mapping[str, str]]
    axes: Mapping[nn.Module, int | None]
    rest: tuple[str, ...]
    batched: bool = True

    def norms2(
        self, model: nn.Module, chosen: Mapping[str, nn.Parameter], batch: Batch, memory: int
    ) -> tuple[Tensor, Tensor]:
        """Returns losses and squared gradient norms of a batch, [B] each."""
        if batch.size == 1 or not self.batched:
            return one_by_one(model, chosen, batch, self.loss)
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        found = []
        try:
            if self.layers:
                found.append(layerwise(model, self.layers, self.axes, batch, self.loss, memory))
        except Surprise:
            return one_by_one(model, chosen, batch, self.loss)
        if self.rest:
            rest = {name: chosen[name] for name in self.rest}
            found.append(vectorised(model, rest, batch, self.loss, memory))
        return found[0][0], torch.stack([squares for _, squares in found]).sum(0)


def make_plan(
    model: nn.Module,
    chosen: Mapping[str, nn.Parameter],
    pair: Batch,
    loss_fn: Callable[[Any, Any], Tensor],
    memory: int,
) -> Plan:
    """Returns the fastest plan whose norms of two samples are those of each sample alone.

    Raises:
        ValueError: if a sample's loss depends on the other, or is not the same twice.
    """
    alone, norms2 = one_by_one(model, chosen, pair, Loss(loss_fn))
    if not (alone.isfinite() & norms2.isfinite()).all():
        return Plan(Loss(loss_fn), {}, {}, (), batched=False)  # the caller says which sample
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in chosen.values():
        parameter.requires_grad_(True)
    shapes_one, _ = _watched(model, pair.rows(0, 1))
    shapes_two, outputs = _watched(model, pair)
    loss, losses = _loss(loss_fn, outputs, pair.target)
    _check_own(alone, losses.detach(), loss.raw(outputs, pair.target, 2).detach())

    axes = {layer: _axis(shapes_one[layer], shapes_two[layer]) for layer in model.modules()}
    called = {layer: len(shapes) for layer, shapes in shapes_two.items()}
    layers = _with_rules(model, chosen, axes, called, _edges(losses, chosen))
    ruled = {name for names in layers.values() for name in names.values()}
    every = Plan(loss, {}, {}, tuple(chosen))
    plans = [
        replace(
            every,
            layers=layers,
            axes=axes,
            rest=tuple(name for name in chosen if name not in ruled),
        ),
        every,
    ]
    for plan in plans:
        try:
            _, found = plan.norms2(model, chosen, pair, memory)
        except (
            Exception
        ):  # torch.func and unforeseen calls fail in many ways; the last resort does not
            continue
        if _close(found.sqrt(), norms2.sqrt(), 1e-3 * norms2.max().sqrt()):
            return plan
    return replace(every, batched=False)


def _watched(model: nn.Module, batch: Batch) -> tuple[_Shapes, Any]:
    """Returns the shapes of every layer's inputs and outputs, call by call, and the model's outputs."""
    shapes: _Shapes = defaultdict(list)

    def called(layer: nn.Module, args: tuple[Any, ...], kwargs: Any, output: Any) -> None:
        x, y = input_of(args, kwargs), output_of(output)
        shape = (x.shape, y.shape) if isinstance(x, Tensor) and isinstance(y, Tensor) else ((), ())
        if torch.is_grad_enabled():  # checkpointed blocks run without at first
            shapes[layer].append(shape)  # type: ignore[arg-type]

    handles = [
        layer.register_forward_hook(called, prepend=True, with_kwargs=True)
        for layer in model.modules()
    ]
    try:
        return shapes, batch.through(model)
    finally:
        for handle in handles:
            handle.remove()


def _axis(
    one: list[tuple[torch.Size, torch.Size]], two: list[tuple[torch.Size, torch.Size]]
) -> int | None:
    """Returns the axis that is 1 long for one sample and 2 for two, if it is the same in all calls."""
    if len(one) != len(two):
        return None
    axes = set()
    for before, after in zip(one, two, strict=True):
        for a, b in zip(before, after, strict=True):
            differ = [i for i, (m, n) in enumerate(zip(a, b, strict=False)) if m != n]
            single = len(a) == len(b) and len(differ) == 1
            axes.add(differ[0] if single and (a[differ[0]], b[differ[0]]) == (1, 2) else None)
    return axes.pop() if len(axes) == 1 else None


def _edges(losses: Tensor, chosen: Mapping[str, nn.Parameter]) -> Counter[str]:
    """Returns how often the graph behind the losses uses each parameter."""
    names = {id(parameter): name for name, parameter in chosen.items()}
    uses: Counter[str] = Counter()
    todo, seen = [losses.grad_fn], {losses.grad_fn}
    while todo:
        node = todo.pop()
        for follower, _ in node.next_functions if node is not None else ():
            leaf = getattr(follower, "variable", None)
            if leaf is not None and id(leaf) in names:
                uses[names[id(leaf)]] += 1
            elif follower is not None and follower not in seen:
                seen.add(follower)
                todo.append(follower)
    return uses


def _with_rules(
    model: nn.Module,
    chosen: Mapping[str, nn.Parameter],
    axes: Mapping[nn.Module, int | None],
    called: Mapping[nn.Module, int],
    edges: Counter[str],
) -> dict[nn.Module, dict[str, str]]:
    """Returns layer -> parameters, local to global name, for which the rules of the layers tell everything.

    Every use of the parameter in the graph must be a call of a layer that has a rule for it.
    """
    names = {id(parameter): name for name, parameter in chosen.items()}
    owners: defaultdict[str, list[tuple[nn.Module, str]]] = defaultdict(list)
    for layer in model.modules():
        recurse = _attention.supported(layer)
        for local, parameter in layer.named_parameters(recurse=recurse):
            inside = type(layer) is nn.modules.linear.NonDynamicallyQuantizableLinear
            if id(parameter) in names and not inside:
                owners[names[id(parameter)]].append((layer, local))
    layers: defaultdict[nn.Module, dict[str, str]] = defaultdict(dict)
    for name, found in owners.items():
        calls = sum(called.get(layer, 0) for layer, _ in found)
        if calls == edges[name] and all(_ruled(*owner, axes, called, calls) for owner in found):
            for layer, local in found:
                layers[layer][local] = name
    return dict(layers)


def _ruled(
    layer: nn.Module,
    local: str,
    axes: Mapping[nn.Module, int | None],
    called: Mapping[nn.Module, int],
    calls: int,
) -> bool:
    if _attention.supported(layer):
        return calls == 1 and axes[layer] == (0 if layer.batch_first else 1)
    rule = rule_of(layer, local)
    if rule is None:
        return False
    if not called.get(layer):
        return True  # no use, no gradient; a call in a later batch is a surprise
    return axes[layer] == 0 or (rule.anywhere and axes[layer] is not None)


def _loss(loss_fn: Callable[[Any, Any], Tensor], outputs: Any, target: Any) -> tuple[Loss, Tensor]:
    loss = Loss(loss_fn, each=Loss(loss_fn).raw(outputs, target, 2).ndim == 1)
    if not loss.each:
        try:
            vectorised = replace(loss, vectorised=True)
            return vectorised, vectorised.of_each(outputs, target, 2)
        except (
            Exception
        ):  # a loss that torch.func cannot do is called for one sample after the other
            pass
    return loss, loss.of_each(outputs, target, 2)


def _check_own(alone: Tensor, losses: Tensor, raw: Tensor) -> None:
    tolerance = _tolerance(alone)
    slack = tolerance * (1 + alone.abs().max())
    own = _close(losses, alone, slack)
    if raw.ndim == 0:  # a sum, or a mean with whatever weights
        summed = (raw - alone.sum()).abs() <= 2 * slack
        own &= bool(summed | (alone.min() - slack <= raw) & (raw <= alone.max() + slack))
    if not own:
        raise ValueError(
            "every sample's loss must depend on that sample alone, but the losses of two samples are "
            f"{alone.tolist()} one at a time and {raw.tolist()} together. Look for a loss that compares "
            "samples, for normalisation over the batch, and for randomness in eval mode."
        )


def _close(found: Tensor, expected: Tensor, slack: Tensor) -> bool:
    tolerance = _tolerance(expected)
    return bool(((found - expected).abs() <= tolerance * (expected.abs() + slack)).all())


def _tolerance(values: Tensor) -> float:
    """Returns what rounding may do, far below what a missing factor or a missing use does."""
    return float(min(0.1, 10 * torch.finfo(values.dtype).eps ** 0.5))
