"""What every rule checks of its arguments before it ranks anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Masks = dict[str, Tensor]
Tensors = Mapping[str, Tensor]  # by the name of the parameter


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """What is asked of a rule."""

    saliency: dict[str, Tensor]  # detached, float32 or float64
    kept: Masks  # what was not removed before
    remaining: int  # weights that must be left in all
    floors: dict[str, int]  # and in each layer


def task(saliency: Tensors, sparsity: float, floor: int, keep: Tensors | None) -> Task:
    """Returns the checked task."""
    if isinstance(sparsity, bool) or not 0 <= sparsity < 1:
        raise ValueError(f"`sparsity` must be in [0, 1), got {sparsity}.")
    if isinstance(floor, bool) or floor < 0:
        raise ValueError(f"`floor` must be 0 or more weights a layer, got {floor}.")
    found = {name: _saliency(name, value) for name, value in saliency.items()}
    total = sum(value.numel() for value in found.values())
    if total == 0:
        raise ValueError("`saliency` must hold at least one weight, it is empty.")
    kept = _previous(found, keep)
    remaining = total - round(sparsity * total)
    counts = {name: int(mask.sum()) for name, mask in kept.items()}
    left = sum(counts.values())
    if left < remaining:
        raise ValueError(
            f"`sparsity`={sparsity} leaves {remaining} of {total} weights, but `keep` has only {left} "
            "left and removed weights do not return: give at least the sparsity of `keep`."
        )
    floors = {name: min(floor, count) for name, count in counts.items()}
    if sum(floors.values()) > remaining:
        raise ValueError(
            f"`floor`={floor} keeps {sum(floors.values())} weights in {len(floors)} layers, but "
            f"`sparsity`={sparsity} leaves {remaining} of {total}: lower one of them."
        )
    return Task(found, kept, remaining, floors)


def _saliency(name: str, value: Tensor) -> Tensor:
    if not value.is_floating_point():
        raise TypeError(f"the saliency of `{name}` must be a float tensor, got {value.dtype}.")
    value = value.detach()
    nans = int(value.isnan().sum())
    if nans:
        raise ValueError(
            f"the saliency of `{name}` is NaN for {nans} of {value.numel()} weights, so they cannot be "
            "ranked: has training diverged, or did the criterion's loss?"
        )
    # Half precision is widened without loss; torch ranks it on few devices.
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


def _previous(saliency: Tensors, keep: Tensors | None) -> Masks:
    if keep is None:
        return {name: torch.ones_like(v, dtype=torch.bool) for name, v in saliency.items()}
    if keep.keys() != saliency.keys():
        names = sorted(keep.keys() ^ saliency.keys())
        raise ValueError(f"`keep` must have the names of `saliency`; only one of them has {names}.")
    for name, value in saliency.items():
        mask = keep[name]
        if mask.dtype != torch.bool or mask.shape != value.shape:
            raise ValueError(
                f"`keep` of `{name}` must be bool {list(value.shape)}, got {mask.dtype} "
                f"{list(mask.shape)}."
            )
    return {name: keep[name].to(value.device) for name, value in saliency.items()}
