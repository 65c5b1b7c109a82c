"""Conversions and checks of arguments, and moments without NaN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Counts = Tensor | Sequence[Any]
ROUNDING = 1e-12  # relative: closer values differ by rounding alone


def numbers(name: str, values: Tensor | Sequence[Any] | float) -> Tensor:
    """Return the values as float64 on the CPU; a sequence may hold tensors of one shape."""
    if isinstance(values, list | tuple) and any(isinstance(v, Tensor) for v in values):
        values = torch.stack([numbers(name, v) for v in values])
    if isinstance(values, Tensor):
        found = values.detach().cpu().double()  # in this order: a device may have no float64
    else:
        found = torch.tensor(values, dtype=torch.float64)  # copies: an array may be read-only
    if bool(found.isinf().any()):
        raise ValueError(f"`{name}` must be finite, or NaN for what is not known; it holds inf.")
    return found


def fractions(name: str, values: Tensor | Sequence[Any] | float) -> Tensor:
    """Return values as `numbers` does, all in [0, 1] or NaN."""
    found = numbers(name, values)
    wrong = (found < 0) | (found > 1)
    if bool(wrong.any()):
        raise ValueError(
            f"`{name}` must be in [0, 1] (fractions, not per cent), or NaN for what is not known, "
            f"got {float(found[wrong][0])}."
        )
    return found


def whole(name: str, values: Counts) -> Tensor:
    """Return whole numbers as int64 on the CPU."""
    found = numbers(name, values)
    wrong = (found < 0) | (found != found.floor())
    if bool(wrong.any()):
        raise ValueError(
            f"`{name}` must be whole numbers of samples, got {float(found[wrong][0])}."
        )
    return found.long()


def same_shape(first: tuple[str, Tensor], *others: tuple[str, Tensor]) -> None:
    """Raise a ValueError unless tensors have the shape of the first."""
    for name, tensor in others:
        if tensor.shape != first[1].shape:
            raise ValueError(
                f"`{first[0]}` and `{name}` must have one shape, got {list(first[1].shape)} and "
                f"{list(tensor.shape)}."
            )


def at_most(name: str, values: Tensor, most: Tensor) -> None:
    """Raise a ValueError if a number is above that of the samples."""
    wrong = values > most
    if bool(wrong.any()):
        raise ValueError(
            f"`{name}` must be at most the number of samples, got {int(values[wrong][0])} of "
            f"{int(most[wrong][0])}."
        )


def accuracies(
    name: str, accuracy: Tensor | Sequence[Any] | float | None, recall: Tensor
) -> Tensor | None:
    """Return accuracies for recalls [..., K], as [...] or one number; None stays None."""
    if accuracy is None:
        return None
    found = fractions(name, accuracy)
    if found.shape not in ((), recall.shape[:-1]):
        raise ValueError(
            f"`{name}` must be one number or one per model as in the recalls, "
            f"{list(recall.shape[:-1])}, got {list(found.shape)}."
        )
    return found


def moments(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return number, mean and unbiased standard deviation over the last axis, without NaN."""
    n = (~values.isnan()).sum(-1).double()
    mean = values.nansum(-1) / n
    sd = ((values - mean[..., None]).square().nansum(-1) / (n - 1)).sqrt()
    return n, mean, sd.where(n > 1, torch.nan)


def scipy_stats() -> Any:
    """Import `scipy.stats`, which is slow and optional."""
    try:
        from scipy import stats
    except ImportError as error:
        raise ImportError(
            "intervals and tests need scipy: pip install 'lightning-fairprune[report]'."
        ) from error
    return stats
