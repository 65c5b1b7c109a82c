"""Groups to count in place of classes."""

from __future__ import annotations

import torch
from torch import Tensor


def groups(label: Tensor, attribute: Tensor, num_attributes: int) -> Tensor:
    """Return the group of each sample, `label * num_attributes + attribute`.

    Args:
        label: Class of each sample, whole numbers, any shape.
        attribute: Attribute of each sample, in [0, num_attributes), same shape.
        num_attributes: Number of attributes A, at least 1.

    Returns:
        Groups, int64, same shape; -1 where the label is negative or the attribute out of range.

    Raises:
        ValueError: If the shapes differ or `num_attributes` is below 1.

    Example:
        >>> groups(torch.tensor([0, 1, 1]), torch.tensor([1, 0, 7]), 2)
        tensor([ 1,  2, -1])
    """
    if label.shape != attribute.shape:
        raise ValueError(
            "`attribute` must have one value for each label, got "
            f"{list(attribute.shape)} for {list(label.shape)}."
        )
    if num_attributes < 1:
        raise ValueError(f"`num_attributes` must be at least 1, got {num_attributes}.")
    label, attribute = label.long(), attribute.long()  # a uint8 label would overflow
    known = (label >= 0) & (attribute >= 0) & (attribute < num_attributes)
    return torch.where(known, label * num_attributes + attribute, -1)
