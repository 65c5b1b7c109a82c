"""How to compute the per-sample gradients of each parameter, checked on two samples."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_fairprune._model.batches import Batch
from lightning_fairprune.gradients import _attention
from lightning_fairprune.gradients._functional import one_by_one, only, vectorised
from lightning_fairprune.gradients._layers import rule_of
from lightning_fairprune.gradients._layerwise import layerwise
from lightning_fairprune.gradients._loss import Loss
from lightning_fairprune.gradients._uses import Call, Layers, Surprise, watched


@dataclass(frozen=True, slots=True)
class Plan:
    """How the norms are computed: `layers` by their rules, the parameters named in `rest` by torch.func.

    Unless `batched`, torch.func cannot do `rest`, and all parameters take one sample at a time.
    """

    loss: Loss
    layers: Layers
    rest: tuple[str, ...]
    batched: bool = True

    def norms2(
        self, model: nn.Module, chosen: Mapping[str, nn.Parameter], batch: Batch
    ) -> tuple[Tensor, Tensor]:
        """Returns losses and squared gradient norms of a batch, [B] each."""
        if batch.size > 1 and self.batched:
            try:
                return self.at_once(model, chosen, batch)
            except Surprise:  # one sample at a time is right for every batch
                pass
        return one_by_one(model, chosen, batch, self.loss)

    def at_once(
        self, model: nn.Module, chosen: Mapping[str, nn.Parameter], batch: Batch
    ) -> tuple[Tensor, Tensor]:
        """Returns the same, or raises Surprise if a layer is called otherwise than in the trial."""
        only(model, ())
        if not self.rest:
            return layerwise(model, self.layers, batch, self.loss)
        rest = {name: chosen[name] for name in self.rest}
        return vectorised(model, rest, self.layers, batch, self.loss)


def make_plan(
    model: nn.Module,
    chosen: Mapping[str, nn.Parameter],
    pair: Batch,
    loss_fn: Callable[[Any, Any], Tensor],
    memory: int,
) -> Plan:
    """Returns the fastest plan whose norms of two samples are those of each sample alone."""
    alone, norms2 = one_by_one(model, chosen, pair, Loss(loss_fn))
    if not (alone.isfinite() & norms2.isfinite()).all():
        # The caller says which sample.
        return Plan(Loss(loss_fn), Layers({}, {}, memory), (), batched=False)
    only(model, chosen.values())
    one, _ = watched(model, model.modules(), pair.rows(slice(1)))
    two, outputs = watched(model, model.modules(), pair)
    loss, losses = _loss(loss_fn, outputs, pair.target)
    tolerance = max(_tolerance(value.dtype) for value in (alone, *chosen.values()))
    _check_own(tolerance, alone, losses.detach(), loss.raw(outputs, pair.target, 2).detach())

    every = Plan(loss, Layers({}, {}, memory), tuple(chosen))
    plans = [_ruled(model, every, chosen, one, two, _edges(losses, chosen)), every]
    for plan in plans:
        try:
            _, found = plan.at_once(model, chosen, pair)
        except Exception:  # torch.func fails in many ways; the last resort does not
            continue
        if _close(found.sqrt(), norms2.sqrt(), tolerance, 1e-3 * norms2.max().sqrt()):
            return plan
    return replace(plans[0], rest=plans[0].rest or tuple(chosen), batched=False)


def _axis(one: list[Call], two: list[Call]) -> int | None:
    """Returns the axis of size 1 for one sample and 2 for two, if it is the same in all calls."""
    if len(one) != len(two):
        return None
    axes = set()
    for before, after in zip(one, two, strict=True):
        for a, b in ((before.x, after.x), (before.y, after.y)):
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


def _ruled(
    model: nn.Module,
    every: Plan,
    chosen: Mapping[str, nn.Parameter],
    one: list[Call],
    two: list[Call],
    edges: Counter[str],
) -> Plan:
    """Returns the plan that uses rules for the parameters whose every use they cover.

    Every use of such a parameter in the graph is a call of a layer that has a rule for it.
    """
    of_one, of_two = _by_layer(one), _by_layer(two)
    axes = {layer: _axis(of_one[layer], of_two[layer]) for layer in model.modules()}
    layers: defaultdict[nn.Module, dict[str, str]] = defaultdict(dict)
    ruled = set()
    for name, owners in _owners(model, chosen).items():
        calls = sum(len(of_two[layer]) for layer, _ in owners)
        if calls == edges[name] and all(
            _has_rule(layer, local, axes[layer], len(of_two[layer]), calls)
            for layer, local in owners
        ):
            ruled.add(name)
            for layer, local in owners:
                layers[layer][local] = name
    rest = [name for name in chosen if name not in ruled]
    if rest:  # torch.func runs anyhow, and does attention well
        for layer in [layer for layer in layers if isinstance(layer, nn.MultiheadAttention)]:
            rest += layers.pop(layer).values()
    ruled_layers = replace(every.layers, names=dict(layers), axes=axes)
    return replace(every, layers=ruled_layers, rest=tuple(rest))


def _by_layer(calls: list[Call]) -> defaultdict[nn.Module, list[Call]]:
    found: defaultdict[nn.Module, list[Call]] = defaultdict(list)
    for call in calls:
        found[call.layer].append(call)
    return found


def _owners(
    model: nn.Module, chosen: Mapping[str, nn.Parameter]
) -> dict[str, list[tuple[nn.Module, str]]]:
    """Returns the layers that have each parameter, with its name in them."""
    names = {id(parameter): name for name, parameter in chosen.items()}
    owners: defaultdict[str, list[tuple[nn.Module, str]]] = defaultdict(list)
    for layer in model.modules():
        if type(layer) is nn.modules.linear.NonDynamicallyQuantizableLinear:
            continue  # inside attention, which uses its weight without calling it
        recurse = _attention.supported(layer)
        for local, parameter in layer.named_parameters(recurse=recurse):
            if id(parameter) in names:
                owners[names[id(parameter)]].append((layer, local))
    return dict(owners)


def _has_rule(layer: nn.Module, local: str, axis: int | None, own: int, calls: int) -> bool:
    if _attention.supported(layer):
        return calls == 1 and axis == (0 if layer.batch_first else 1)
    rule = rule_of(layer, local)
    if rule is None:
        return False
    # Without a call there is no use and no gradient; a call in a later batch is a surprise.
    return own == 0 or axis == 0 or (rule.anywhere and axis is not None)


def _loss(loss_fn: Callable[[Any, Any], Tensor], outputs: Any, target: Any) -> tuple[Loss, Tensor]:
    loss = Loss(loss_fn, each=Loss(loss_fn).raw(outputs, target, 2).ndim == 1)
    if not loss.each:
        try:
            vectorised = replace(loss, vectorised=True)
            return vectorised, vectorised.of_each(outputs, target, 2)
        except Exception:  # torch.func cannot do it: the loss is called for one sample at a time
            pass
    return loss, loss.of_each(outputs, target, 2)


def _check_own(tolerance: float, alone: Tensor, losses: Tensor, raw: Tensor) -> None:
    slack = tolerance * (1 + alone.abs().max())
    own = _close(losses, alone, tolerance, slack)
    if raw.ndim == 0:  # a sum, or a mean with whatever weights
        summed = (raw - alone.sum()).abs() <= 2 * slack
        own &= bool(summed | (alone.min() - slack <= raw) & (raw <= alone.max() + slack))
    if not own:
        raise ValueError(
            "every sample's loss must depend on that sample alone, but the losses of two samples are "
            f"{alone.tolist()} one at a time and {raw.tolist()} together. Look for a loss that compares "
            "samples, for normalisation over the batch, and for randomness in eval mode."
        )


def _close(found: Tensor, expected: Tensor, tolerance: float, slack: Tensor) -> bool:
    return bool(((found - expected).abs() <= tolerance * (expected.abs() + slack)).all())


def _tolerance(dtype: torch.dtype) -> float:
    """Returns the relative error allowed to rounding, far below that of a missing factor or use."""
    return float(min(0.1, 10 * torch.finfo(dtype).eps ** 0.5))
