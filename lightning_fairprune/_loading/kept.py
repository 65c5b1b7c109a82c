"""Indices of kept samples, sorted, each as often as an epoch draws it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_fairprune._files import pack_bits, unpack_bits


def state_of(kept: Tensor | None) -> dict[str, Any]:
    """Returns the indices for a checkpoint, as CPU tensors and primitives.

    A bit per sample is smaller than indices; only samples that are drawn several times need a number.
    """
    if kept is None:
        return {"kept": None}
    mask = torch.zeros(int(kept[-1]) + 1 if len(kept) else 0, dtype=torch.bool)
    mask[kept] = True
    state: dict[str, Any] = {"kept": (pack_bits(mask), len(mask))}
    copies = torch.unique_consecutive(kept, return_counts=True)[1]
    return state if len(copies) == len(kept) else state | {"copies": copies.to(torch.int32)}


def kept_in(state: Mapping[str, Any]) -> Tensor | None:
    """Returns the indices of a checkpoint; one without repeats has no number of copies."""
    if state["kept"] is None:
        return None
    distinct = unpack_bits(*state["kept"]).nonzero().squeeze(1)
    copies: Tensor | None = state.get("copies")
    return distinct if copies is None else distinct.repeat_interleave(copies.long())


def spread(order: Tensor, kept: Tensor) -> Tensor:
    """Returns an order of the distinct samples with the other copies of each at even distances from the first.

    Copies next to each other would share a batch.
    """
    n = len(order)
    if n == len(kept):
        return order
    often = torch.bincount(kept).index_select(0, order)
    first = torch.arange(n).repeat_interleave(often)
    ends = often.cumsum(0)
    copy = torch.arange(len(kept)) - (ends - often).index_select(0, first)
    place = (first + copy * n / often.index_select(0, first)) % n
    return order.index_select(0, first.index_select(0, place.argsort(stable=True)))
