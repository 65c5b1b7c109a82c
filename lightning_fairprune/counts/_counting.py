"""Where each prediction is counted, without waiting for the device.

A count is one int64 tensor [2K + 4]: the wrong and the right predictions of each class (or group); then the labels
out of range, the predictions that are not finite, the predictions out of range and the samples left out. The slots of
these four may be negative, from the end, so that groups can be counted before their number is known.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor

from lightning_fairprune.counts._class_counts import ClassCounts
from lightning_fairprune.recalls import groups

FAULTS = _OUTSIDE, NOT_FINITE, _UNKNOWN, LEFT_OUT = range(-4, 0)  # slots from the end


def slots_of(
    preds: Tensor,
    label: Tensor,
    num_classes: int,
    top_k: int = 1,
    *,
    group: Tensor | None = None,
    end: int = 0,
) -> Tensor:
    """Returns which element of a count each sample adds 1 to, int64, of the shape of `label`.

    The prediction is the highest of the floating `preds` [B, C, ...], of equals the first. Only that one must be
    finite: a class may be closed by a logit of -inf. NaN counts as the highest. Whole `preds` are class ids.
    """
    if preds.is_floating_point():
        top, pred = preds.max(1)
        right = pred == label if top_k == 1 else _in_top_k(preds, label, top_k)
        broken, why = (top - top).isnan(), NOT_FINITE  # infinity or NaN
    else:
        pred = preds.long()
        right = pred == label
        broken, why = pred != pred.clamp(0, num_classes - 1), _UNKNOWN
    outside = label != label.clamp(0, num_classes - 1)
    if group is not None:
        outside |= group < 0
    slot = torch.add(right, label if group is None else group, alpha=2)
    return slot.masked_fill_(broken, end + why).masked_fill_(outside, end + _OUTSIDE)


def regrouped(slots: Tensor, group: Tensor) -> Tensor:
    """Returns the slots of the same predictions where groups are counted in place of classes."""
    own = torch.add(slots % 2, group, alpha=2).masked_fill_(group < 0, _OUTSIDE)
    return torch.where(slots < 0, slots, own)


def counted(slots: Tensor, size: int) -> Tensor:
    """Returns the count of `size` classes (or groups), int64 [2K + 4]."""
    count = slots.new_zeros(2 * size - FAULTS[0])
    return count.index_add_(0, slots % len(count), torch.ones_like(slots))


@dataclass(frozen=True, slots=True)
class Counting:
    """How predictions are counted by class, or by groups of class and attribute.

    Args:
        num_classes: Number of classes C, at least 1.
        ignore_index: Label of samples to leave out.
        top_k: How many of the highest predictions may hold the label, in [1, C].
        num_attributes: Number of attributes A, to count K = C A groups.

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
            f"slots_{self.num_classes}_by_{self.num_attributes}"
            f"_top_{self.top_k}_without_{self.ignore_index}"
        )

    def zeros(self) -> Tensor:
        """Returns the count of nothing, int64 [2K + 4]."""
        return torch.zeros(2 * self.size + len(FAULTS), dtype=torch.int64)

    @staticmethod
    def parts(count: Tensor) -> tuple[Tensor, Tensor]:
        """Returns right predictions [K] and support [K] of a count."""
        of_class = count[: FAULTS[0]].view(-1, 2)
        return of_class[:, 1], of_class.sum(1)

    def slots(self, preds: Tensor, target: Tensor, attribute: Tensor | None = None) -> Tensor:
        """Returns which element of the count each sample adds 1 to, int64 [N], after a check of dtypes and shapes."""
        self.check(preds, target, attribute)
        label, end = target.long(), 2 * self.size + len(FAULTS)
        group = None
        if attribute is not None and self.num_attributes is not None:
            group = groups(label, attribute, self.num_attributes)
        slots = slots_of(preds, label, self.num_classes, self.top_k, group=group, end=end)
        if self.ignore_index is not None:
            slots.masked_fill_(label == self.ignore_index, end + LEFT_OUT)
        return slots.reshape(-1)

    def count(self, preds: Tensor, target: Tensor, attribute: Tensor | None = None) -> ClassCounts:
        """Returns the counts of one set of predictions."""
        return self.read(counted(self.slots(preds, target, attribute), self.size))

    def read(self, count: Tensor) -> ClassCounts:
        """Returns true positives and support on the host; raises ValueError for what is out of range or not finite."""
        count = count.cpu()
        outside, not_finite, unknown, _ = count[FAULTS[0] :].tolist()
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
        return ClassCounts(*self.parts(count))

    def check(self, preds: Tensor, target: Tensor, attribute: Tensor | None = None) -> None:
        """Raises for predictions, labels or attributes of the wrong dtype or shape."""
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
                    f"`preds` must be {list(shape)} to match `target` {list(target.shape)} and "
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


def _in_top_k(preds: Tensor, label: Tensor, top_k: int) -> Tensor:
    """Whether fewer than k classes come before the label; of equals, the lower id does."""
    own_id = label.clamp(0, preds.shape[1] - 1).unsqueeze(1)
    own = preds.gather(1, own_id)
    ids = torch.arange(preds.shape[1], device=preds.device)
    ids = ids.reshape(-1, *[1] * (preds.ndim - 2))
    ahead = (preds > own) | ((preds == own) & (ids < own_id))
    return ahead.sum(1) < top_k


def count(pred: Tensor, target: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Return true positives and support of one batch, both int64 [K], without waiting for the device.

    Args:
        pred: Predicted class, or whether the prediction was right (bool), [B].
        target: Class (or group, with a bool `pred`) of each sample, int64 [B]; outside [0, K) it is not counted.
        num_classes: K.

    Example:
        >>> count(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0]), 3)
        (tensor([1, 1, 0]), tensor([2, 1, 0]))
    """
    label = target.long()
    right = pred if pred.dtype == torch.bool else pred == label
    outside = label != label.clamp(0, num_classes - 1)
    slots = torch.add(right, label, alpha=2).masked_fill_(outside, _OUTSIDE)
    return Counting.parts(counted(slots, num_classes))
