"""The calls of torch's classification losses: what they are given, and what it says of classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100
"""The label of a sample or position without a class, whatever `ignore_index` the loss has."""

REMEDY = "return {'loss': ..., 'logits': [B, C], 'target': [B]} from the step or pass `logits_fn`."

# One class per sample; one logit per class, each for itself; the same with probabilities.
Kind = Literal["classes", "logits_each", "probabilities_each"]

_KINDS: dict[Callable[..., Any], Kind] = {
    F.cross_entropy: "classes",
    F.nll_loss: "classes",
    F.multi_margin_loss: "classes",
    F.binary_cross_entropy_with_logits: "logits_each",
    F.binary_cross_entropy: "probabilities_each",
}


class Seen(NamedTuple):
    """Logits [B, C, ...] and target of a step, without gradient.

    The target is one class index per sample or position, int64 [B, ...], `IGNORED` where there is none; or with
    `per_label` whether each label holds, [B, C]. `mixed` holds class probabilities [B, C] of mixed samples, of which the
    target is the highest.
    """

    logits: Tensor
    target: Tensor
    per_label: bool = False
    mixed: Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class LossCall:
    """One call of a loss.

    Args:
        name: of the function.
        kind: of its input.
        input: what it was given.
        target: likewise.
        ignore_index: label of samples that it leaves out; None if it takes none.
    """

    name: str
    kind: Kind
    input: Tensor
    target: Tensor
    ignore_index: int | None

    @classmethod
    def of(
        cls, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> LossCall | None:
        """Returns the call, or None for any other function."""
        kind = _KINDS.get(func)
        if kind is None:
            return None
        given = args[0] if args else kwargs["input"]
        target = args[1] if len(args) > 1 else kwargs["target"]
        ignore_index = None
        if func is F.cross_entropy or func is F.nll_loss:
            ignore_index = args[4] if len(args) > 4 else kwargs.get("ignore_index", -100)
        return cls(func.__name__, kind, given, target, ignore_index)

    def detached(self) -> LossCall:
        """Returns the call without gradients."""
        given = self.input.detach(), self.target.detach()
        return LossCall(self.name, self.kind, *given, self.ignore_index)

    @property
    def whole(self) -> bool:
        """Whether the targets are class indices."""
        return self.kind == "classes" and not self.target.is_floating_point()

    def labels(self) -> Tensor:
        """Returns the class indices of `target`, `IGNORED` where the loss ignores them."""
        return ignoring(plain(self.target), self.ignore_index)


def other_samples(found: int, expected: int | None) -> str:
    """Returns the message for a loss of other samples than those of the batch."""
    return (
        f"the loss saw {found} samples of a batch with {expected} indices: the collate function and the step must "
        f"neither drop nor repeat samples, or their indices are unknown; if the loss needs that, {REMEDY}"
    )


def ignoring(target: Tensor, ignore_index: int | None) -> Tensor:
    """Returns class indices with `IGNORED` in the place of `ignore_index`; the same tensor if they agree."""
    if ignore_index is None or ignore_index == IGNORED:
        return target
    return target.masked_fill(target == ignore_index, IGNORED)


def in_transform(tensor: Tensor) -> bool:
    """Whether a tensor lives inside a transform of `torch.func` (vmap, grad), and has no values after it."""
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(tensor))


def plain(tensor: Tensor) -> Tensor:
    """Returns the values of a tensor without gradient, and without the behaviour of a subclass."""
    tensor = tensor.detach()
    return tensor if type(tensor) is Tensor else tensor.as_subclass(Tensor)


def two_classes(logit: Tensor) -> Tensor:
    """Returns logits [B, 2, ...] of the same probabilities as one logit per sample or position, [B, ...] or [B, 1, ...].

    Example:
        >>> import torch
        >>> two_classes(torch.tensor([1.5])).softmax(1)[:, 1] == torch.tensor([1.5]).sigmoid()
        tensor([True])
    """
    logit = logit.squeeze(1) if logit.ndim > 1 and logit.shape[1] == 1 else logit
    return torch.stack([torch.zeros_like(logit), logit], 1)


def labels_in(loss: LossCall, per_label: bool = False) -> Tensor | None:
    """Returns the class indices [B, ...] that a loss was given, or with `per_label` which labels hold, [B, C].

    Of class probabilities the highest counts, of one probability its rounded value. A row of several labels has no
    class: it gets one that does not exist.
    """
    if loss.whole:
        return loss.labels()
    values = plain(loss.target)
    if per_label:
        return (values > 0.5).long()
    if loss.kind != "classes" and values.ndim and _is_single(values):
        held = values > 0.5
        return (held.squeeze(1) if values.ndim > 1 and values.shape[1] == 1 else held).long()
    if values.ndim < 2:
        return None
    highest = values.argmax(1)
    if loss.kind == "classes" or values.ndim > 2:
        return highest
    return highest.masked_fill(~has_one_label(values), values.shape[1])


def _is_single(values: Tensor) -> bool:
    """Whether probabilities are of one class for each sample or position, [B], [B, 1, ...] or [B, H, W]."""
    return values.ndim in (1, 3) or values.shape[1] == 1


def has_one_label(values: Tensor) -> Tensor:
    """Whether each row has one label in total, as one-hot, smoothed and mixed rows do."""
    return (values.float().sum(1) - 1).abs() < 0.5
