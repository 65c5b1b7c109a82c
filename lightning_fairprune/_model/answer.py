"""Where the steps of a fit have logits and target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_fairprune._model.losses import Seen, plain, two_classes
from lightning_fairprune._model.paths import Path


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """Logits and target of a step, and where the next steps have them.

    Args:
        seen: of the step.
        name: what they are, in words.
        returned: keys of predictions and target in what the step returns.
        output: the module that returned the logits, the number of its call and the place of the tensor.
        loss: number of the loss call that has the logits (without `output`) or the target (without `leaf`).
        leaf: where the target is in the batch.
        metric: the metric that is updated with the target, or with both.
        form: what the logits are: of two classes in one number, as a logit or a probability.
        flat: whether the logits hold positions before classes, as [B, T, C].
        ignore_index: of the target.
        by_loss: whether they are what the first loss of a batch was given, logits [B, C] and class indices [B].
    """

    seen: Seen
    name: str
    returned: tuple[str, str] | None = None
    output: tuple[ref[nn.Module], int, int] | None = None
    loss: int | None = None
    leaf: Path | None = None
    metric: ref[Metric] | None = None
    form: str = "classes"
    flat: bool = False
    ignore_index: int | None = None
    by_loss: bool = False

    def without_tensors(self) -> Answer:
        """Returns the answer for other steps: the tensors of the first one may be large."""
        nothing, (*_, per_label, mixed) = torch.empty(0), self.seen
        seen = Seen(nothing, nothing, per_label, None if mixed is None else nothing)
        return replace(self, seen=seen)


def has_logits(outputs: Any) -> bool:
    """Whether a step returned logits and target under these names."""
    return isinstance(outputs, Mapping) and {"logits", "target"} <= outputs.keys()


def fit(logits: Any, labels: Any) -> bool:
    """Whether these are logits [B, C, ...] and one class index per sample or position."""
    return bool(
        logits.is_floating_point()
        and not labels.is_floating_point()
        and logits.ndim == labels.ndim + 1 > 1
        and logits.shape[1] > 1
        and logits.shape[:1] + logits.shape[2:] == labels.shape
    )


def formed(value: Tensor, form: str, *, flat: bool) -> Tensor:
    """Returns logits [B, C, ...] from the output of a module or the input of a loss."""
    value = plain(value)
    if form == "probability":
        value, form = value.logit(), "logit"
    if form == "logit":
        return two_classes(value)
    return value.movedim(-1, 1) if flat else value


def equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool(torch.equal(one.to(other.dtype), other))


def called(module: nn.Module, part: nn.Module | None) -> str:
    names = {id(other): name for name, other in module.named_modules()}
    name = names.get(id(part), "")
    if part is None:
        return "a module that is gone"
    return f"`{name}` ({type(part).__name__})" if name else type(part).__name__


def place_of(path: Path) -> str:
    return "".join(f"[{key!r}]" if way == "item" else f".{key}" for way, key in path) or "itself"
