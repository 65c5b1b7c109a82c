"""Applies masks to weights, gradients, optimiser states and averages."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer
from torch.optim.swa_utils import AveragedModel
from torchmetrics import Metric

from lightning_fairprune import criteria, masks
from lightning_fairprune._files import pack_bits, unpack_bits
from lightning_fairprune._model.matrices import layers_weight
from lightning_fairprune._observe.ranks import max_over_ranks

Masks = dict[str, Tensor]


class MaskedWeights:
    """Keeps the removed weights of a model at zero during training.

    A hook sets them back to zero after every step of an optimiser. It multiplies by a second copy of
    the masks, 0 and 1 in the precision of the weights: for all layers at once that is ten times faster
    than filling by booleans.
    """

    def __init__(self, module: nn.Module, optimizers: Iterable[Optimizer]) -> None:
        self.masks: Masks = {}
        self._module = module
        self._optimizers: list[Optimizer] = []
        self._factors: dict[int, Tensor] = {}
        # By optimiser: number of its parameters, the pruned ones, their factors.
        self._pruned: dict[int, tuple[int, list[Tensor], list[Tensor]]] = {}
        self._hooks: list[Any] = []
        for optimizer in optimizers:
            self._follow(optimizer)

    def __getstate__(self) -> dict[str, Any]:
        """Pickles the masks, on the host, without model and optimisers."""
        at_rest: dict[str, Any] = {
            "_hooks": [],
            "_optimizers": [],
            "_factors": {},
            "_pruned": {},
            "_module": None,
        }
        return at_rest | {"masks": {name: mask.cpu() for name, mask in self.masks.items()}}

    def is_of(self, module: nn.Module) -> bool:
        """Whether they are the weights of this model."""
        return self._module is module

    def _follow(self, optimizer: Optimizer) -> None:
        if not any(optimizer is known for known in self._optimizers):
            self._optimizers.append(optimizer)
            self._hooks.append(optimizer.register_step_post_hook(self._after_step))

    @property
    def at_work(self) -> bool:
        """Whether it is attached to optimisers."""
        return bool(self._optimizers)

    def set(self, found: Mapping[str, Tensor]) -> None:
        """Sets the masks without applying them: restored weights are masked already."""
        parameters = dict(self._module.named_parameters())
        self.masks = {name: mask.to(parameters[name].device) for name, mask in found.items()}
        self._factors = {
            id(parameters[name]): mask.to(parameters[name].dtype)
            for name, mask in self.masks.items()
        }
        self._pruned = {}

    def enforce(self) -> None:
        """Zeroes removed weights and their entries in optimiser states."""
        masks.apply(self._module, self.masks)
        for optimizer in self._optimizers:
            if isinstance(optimizer, LBFGS):
                optimizer.state.clear()  # the curvature of the dense model, in one vector for all
            for parameter, factor in zip(*self._of(optimizer), strict=True):
                for value in optimizer.state.get(parameter, {}).values():
                    if isinstance(value, Tensor) and value.shape == parameter.shape:
                        value.masked_fill_(factor == 0, 0)

    def _of(self, optimizer: Optimizer) -> tuple[list[Tensor], list[Tensor]]:
        """Returns the pruned parameters of an optimiser and their factors."""
        if not self._factors:
            return [], []
        count = sum(len(group["params"]) for group in optimizer.param_groups)
        known = self._pruned.get(id(optimizer))
        if known is None or known[0] != count:  # an optimiser gets parameters when layers unfreeze
            every = (p for group in optimizer.param_groups for p in group["params"])
            pruned: list[Tensor] = [p for p in every if id(p) in self._factors]
            known = count, pruned, [self._factors[id(p)] for p in pruned]
            self._pruned[id(optimizer)] = known
        return known[1:]

    def zero_gradients(self, optimizer: Any) -> None:
        """Zeroes gradients before clipping and the step, for the sake of norms and momenta."""
        optimizer = getattr(optimizer, "optimizer", optimizer)  # of a LightningOptimizer
        self._follow(optimizer)  # it may have been created during training
        pairs = zip(*self._of(optimizer), strict=True)
        known = [(p.grad, factor) for p, factor in pairs if p.grad is not None]
        if known:
            torch._foreach_mul_([grad for grad, _ in known], [factor for _, factor in known])

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, *_: Any) -> None:
        pruned, factors = self._of(optimizer)
        if pruned:
            torch._foreach_mul_(pruned, factors)

    def detach(self) -> None:
        """Removes the hooks, frees the device memory and moves the masks to the host."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._optimizers, self._factors, self._pruned = [], [], {}, {}
        self.masks = {name: mask.cpu() for name, mask in self.masks.items()}

    def state_dict(self) -> dict[str, Any]:
        """Returns the masks as bits."""
        return {
            name: [pack_bits(mask.flatten()), list(mask.shape)] for name, mask in self.masks.items()
        }


def unpack(state: Mapping[str, Any]) -> Masks:
    """Returns the masks of a `state_dict`."""
    return {
        name: unpack_bits(bits, math.prod(shape)).view(shape)
        for name, (bits, shape) in state.items()
    }


def selected(
    module: nn.Module, include: list[str] | None, exclude: list[str] | None, keep_classifier: bool
) -> tuple[str, ...]:
    """Returns the names of the parameters to prune, in the order of the model."""
    parameters = outside_metrics(module)
    prunable = tuple(name for name in criteria.prunable(module) if name in parameters)
    every = list(parameters)
    named = prunable if include is None else matching("include", include, every)
    left_out = () if exclude is None else matching("exclude", exclude, every)
    names = [name for name in every if name in named and name not in left_out]
    if keep_classifier:
        last = _classifier(module, prunable, parameters)
        names = [name for name in names if name != last]
    if not names:
        raise ValueError(
            "WeightPruning must have weights to prune, but `include`, `exclude` and `keep_classifier`="
            f"{keep_classifier} leave none of {type(module).__name__}, whose prunable "
            f"weights are {', '.join(prunable) or 'none'}: name those to prune in `include`."
        )
    frozen = [name for name in names if not parameters[name].requires_grad]
    if frozen and include is None:
        more = f" and {len(frozen) - 1} more" if len(frozen) > 1 else ""
        rank_zero_warn(
            f"WeightPruning removes weights that are frozen, too: {frozen[0]}{more}. If they are those of a "
            "teacher or of a loss, leave them out with `exclude`; if not, name all weights in `include`."
        )
    return tuple(names)


def outside_metrics(module: nn.Module) -> dict[str, nn.Parameter]:
    """Returns the parameters of a model by name, without those of networks that metrics have."""
    measuring = {id(p) for m in module.modules() if isinstance(m, Metric) for p in m.parameters()}
    return {n: p for n, p in module.named_parameters() if id(p) not in measuring}


def _classifier(
    module: nn.Module, prunable: tuple[str, ...], parameters: Mapping[str, nn.Parameter]
) -> str | None:
    """Returns the weight of the last linear layer, else of the last convolution; None without any."""
    # The classifier of a frozen teacher may come after that of the model.
    layers = [name for name in prunable if layers_weight(name)] or list(prunable)
    trained = [name for name in layers if parameters[name].requires_grad] or layers
    # By shape, because a parametrisation renames the weight.
    names = [name for name in trained if parameters[name].ndim == 2] or trained
    return names[-1] if names else None


def matching(argument: str, patterns: list[str] | str, names: list[str]) -> set[str]:
    """Returns the names that patterns match; raises for a pattern that matches none."""
    if isinstance(patterns, str):
        raise TypeError(f"`{argument}` must be a list of patterns, got the string {patterns!r}.")
    found: set[str] = set()
    for pattern in patterns:
        like = {name for name in names if fnmatchcase(name, pattern)}
        if not like:
            raise ValueError(
                f"`{argument}`: no parameter has a name like {pattern!r}; there are "
                f"{', '.join(names)}."
            )
        found |= like
    return found


def averages(trainer: pl.Trainer) -> Iterator[nn.Module]:
    """Yields the averaged models of other callbacks (EMA, SWA)."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        average = getattr(callback, "_average_model", None)
        if isinstance(average, nn.Module):
            yield average.module if isinstance(average, AveragedModel) else average


def agreed(trainer: pl.Trainer, found: Masks, *, from_data: bool) -> Masks:
    """Returns rank 0's masks on every rank.

    Raises a RuntimeError on every rank if masks `from_data` differ: rank 0's part of the data alone
    would decide.
    """
    if trainer.world_size == 1:
        return found
    own = pack_bits(torch.cat([mask.flatten().cpu() for mask in found.values()]))
    first = trainer.strategy.broadcast(own)
    differs = torch.tensor(int(not torch.equal(own, first)), device=trainer.strategy.root_device)
    if from_data and max_over_ranks(trainer)(differs):
        raise RuntimeError(
            "the ranks would remove different weights: a `criterion` that reads batches must give the "
            "same saliency on all of them, so sum what it computes over the ranks."
        )
    sizes = [mask.numel() for mask in found.values()]
    parts = torch.split(unpack_bits(first, sum(sizes)), sizes)
    return {
        name: part.view(mask.shape).to(mask.device, copy=True)
        for (name, mask), part in zip(found.items(), parts, strict=True)
    }
