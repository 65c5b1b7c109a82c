"""How predictions and labels become counts, without waiting for the device."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import TypedDict

import torch
from torch import Tensor

from lightning_fairprune.counts import ClassCounts
from lightning_fairprune.recalls import groups


class Options(TypedDict, total=False):
    """What the functional forms take beside predictions, labels and `num_classes`."""

    ignore_index: int | None
    top_k: int
    num_attributes: int | None
    attribute: Tensor | None


@dataclass(frozen=True, slots=True)
class Counting:
    """What is counted as right and where.

    A count is one int64 tensor [2K + 4]: the wrong predictions of each class (or group), the right ones,
    then the labels out of range, the predictions that are not finite, the predictions out of range and
    the samples left out. One `index_add_` per batch fills it.

    Args:
        num_classes: Number of classes C, at least 1.
        ignore_index: Label of samples to leave out.
        top_k: How many of the highest predictions may hold the label, in [1, C].
        num_attributes: Number of attributes A; groups are counted then, K = C A.

    Raises:
        TypeError: If a number is not whole.
        ValueError: If an argument is out of range.
    """

    num_classes: int
    ignore_index: int | None = None
    top_k: int = 1
    num_attributes: int | None = None

    def __post_init__(self) -> None:
        for name in ("num_classes", "top_k", "num_attributes"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, Integral)):
                raise TypeError(f"`{name}` must be a whole number, got {value!r}.")
        if self.num_classes < 1:
            raise ValueError(f"`num_classes` must be at least 1, got {self.num_classes}.")
        if not 1 <= self.top_k <= self.num_classes:
            raise ValueError(
                f"`top_k` must be between 1 and the {self.num_classes} classes, got {self.top_k}."
            )
        if self.num_attributes is not None and self.num_attributes < 1:
            raise ValueError(f"`num_attributes` must be at least 1, got {self.num_attributes}.")

    @property
    def size(self) -> int:
        """K, the number of classes or groups."""
        return self.num_classes * (self.num_attributes or 1)

    @property
    def name(self) -> str:
        """A name that only metrics share which count alike."""
        return (
            f"counts_{self.num_classes}_by_{self.num_attributes}"
            f"_top_{self.top_k}_without_{self.ignore_index}"
        )

    def zeros(self, device: torch.device | None = None) -> Tensor:
        """Returns the count of nothing, int64 [2K + 4]."""
        return torch.zeros(2 * self.size + 4, dtype=torch.int64, device=device)

    def slots(self, preds: Tensor, target: Tensor, attribute: Tensor | None = None) -> Tensor:
        """Returns which element of the count each sample adds 1 to, int64 [N].

        Raises:
            TypeError: If a tensor has the wrong dtype.
            ValueError: If shapes do not fit, or `attribute` does not go with `num_attributes`.
        """
        self._check(preds, target, attribute)
        last = self.num_classes - 1
        label = group = target.long()
        if attribute is not None and self.num_attributes is not None:
            group = groups(label, attribute, self.num_attributes)
        if preds.is_floating_point():
            top, pred = preds.max(1)
            right = pred == label if self.top_k == 1 else self._in_top_k(preds, label)
            broken = (top - top).isnan()  # infinity or NaN; a NaN anywhere is the maximum
        else:
            pred = preds.long()
            right = pred == label
            broken = pred != pred.clamp(0, last)
        outside = label != label.clamp(0, last)
        if group is not label:
            outside |= group < 0
        slot = torch.add(group, right, alpha=self.size)
        slot.masked_fill_(broken, 2 * self.size + (1 if preds.is_floating_point() else 2))
        slot.masked_fill_(outside, 2 * self.size)
        if self.ignore_index is not None:
            slot.masked_fill_(label == self.ignore_index, 2 * self.size + 3)
        return slot.reshape(-1)

    def read(self, count: Tensor) -> ClassCounts:
        """Returns true positives and support on the host.

        Raises:
            ValueError: If a label or a prediction was out of range or not finite.
        """
        count = count.cpu()
        wrong, tp = count[: self.size], count[self.size : -4]
        outside, not_finite, unknown, _ = count[-4:].tolist()
        if outside:
            also = f" or an attribute outside [0, {self.num_attributes})"
            raise ValueError(
                f"{outside} samples have a label outside [0, {self.num_classes})"
                f"{also if self.num_attributes else ''}: "
                "correct them or name the label to leave out in `ignore_index`."
            )
        if not_finite:
            raise ValueError(
                f"`preds` of {not_finite} samples are not finite: the training has diverged; "
                "lower the learning rate."
            )
        if unknown:
            raise ValueError(f"{unknown} samples have `preds` outside [0, {self.num_classes}).")
        return ClassCounts(tp, wrong + tp)

    def _check(self, preds: Tensor, target: Tensor, attribute: Tensor | None) -> None:
        for name, value in (("preds", preds), ("target", target)):
            if not isinstance(value, Tensor):
                raise TypeError(f"`{name}` must be a tensor, got {type(value).__name__}.")
        if target.is_floating_point() or target.is_complex():
            raise TypeError(f"`target` must hold class ids, got {target.dtype}.")
        if target.ndim == 0:
            raise ValueError("`target` must be [B] or [B, ...], got a single number.")
        if preds.is_floating_point():
            shape = (target.shape[0], self.num_classes, *target.shape[1:])
            if preds.shape != shape:
                raise ValueError(
                    f"`preds` must be {list(shape)} to go with `target` {list(target.shape)} and "
                    f"{self.num_classes} classes, got {list(preds.shape)}."
                )
        else:
            self._check_ids(preds, target)
        if (attribute is None) != (self.num_attributes is None):
            raise ValueError(
                "`attribute` and `num_attributes` must be given together, got "
                f"{'no' if attribute is None else 'an'} `attribute` and "
                f"`num_attributes={self.num_attributes}`."
            )
        if attribute is None:
            return
        if attribute.is_floating_point() or attribute.is_complex():
            raise TypeError(f"`attribute` must hold attribute ids, got {attribute.dtype}.")

    def _check_ids(self, preds: Tensor, target: Tensor) -> None:
        if preds.dtype == torch.bool or preds.is_complex():
            raise TypeError(
                f"`preds` must be logits, probabilities or class ids, got {preds.dtype}: if they "
                "are the classes 0 and 1, pass `preds.long()`."
            )
        if preds.shape != target.shape:
            raise ValueError(
                "`preds` must be logits or probabilities, or class ids with the shape of `target`, "
                f"got {preds.dtype} {list(preds.shape)} for {list(target.shape)}."
            )
        if self.top_k > 1:
            raise ValueError(
                f"`preds` must be logits or probabilities for `top_k={self.top_k}`, got class ids."
            )

    def _in_top_k(self, preds: Tensor, label: Tensor) -> Tensor:
        """Whether fewer than k classes come before the label; of equals, the lower id does."""
        own_id = label.clamp(0, self.num_classes - 1).unsqueeze(1)
        own = preds.gather(1, own_id)
        ids = torch.arange(self.num_classes, device=preds.device)
        ids = ids.reshape(-1, *[1] * (preds.ndim - 2))
        ahead = (preds > own) | ((preds == own) & (ids < own_id))
        return ahead.sum(1) < self.top_k


def count(
    counting: Counting, preds: Tensor, target: Tensor, attribute: Tensor | None = None
) -> ClassCounts:
    """Returns the counts of one set of predictions."""
    slots = counting.slots(preds, target, attribute)
    total = counting.zeros(slots.device).index_add_(0, slots, torch.ones_like(slots))
    return counting.read(total)
