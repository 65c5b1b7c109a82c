"""Checks and conversions of recalls and accuracies."""

from __future__ import annotations

import torch
from torch import Tensor


def checked(recall: Tensor, name: str = "recall") -> Tensor:
    if not recall.is_floating_point():
        raise TypeError(
            f"`{name}` must be floating point, got {recall.dtype}: divide true positives by support."
        )
    if recall.ndim == 0 or recall.shape[-1] == 0:
        raise ValueError(
            f"`{name}` must be [..., K] with at least one class, got {list(recall.shape)}."
        )
    return recall.float() if recall.dtype in (torch.float16, torch.bfloat16) else recall


def pair(recall: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Returns both, NaN where either is NaN."""
    recall, reference = checked(recall), checked(reference, "reference")
    if recall.shape[-1] != reference.shape[-1]:
        raise ValueError(
            f"`reference` must be for the {recall.shape[-1]} classes of `recall`, "
            f"got {reference.shape[-1]}."
        )
    missing = recall.isnan() | reference.isnan()
    # `where` and not `masked_fill`: one of the two may have fewer batch dimensions.
    return torch.where(missing, torch.nan, recall), torch.where(missing, torch.nan, reference)


def broadcast(accuracy: float | Tensor | None, recall: Tensor) -> float | Tensor:
    """Returns the accuracy, by default the mean recall, in a shape that broadcasts over [..., K]."""
    if accuracy is None:
        return recall.nanmean(-1, keepdim=True)
    return accuracy.to(recall.dtype).unsqueeze(-1) if isinstance(accuracy, Tensor) else accuracy


def ratio(numerator: Tensor, denominator: float | Tensor) -> Tensor:
    """Returns the quotient, NaN where the denominator is 0."""
    if isinstance(denominator, Tensor):
        return numerator / torch.where(denominator == 0, torch.nan, denominator)
    return numerator / (denominator or torch.nan)
