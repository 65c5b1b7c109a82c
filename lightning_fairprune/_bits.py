"""Booleans stored as bits."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["pack_bits", "unpack_bits"]


def pack_bits(values: Tensor) -> Tensor:
    """Return booleans eight to a byte: value `8 j + i` of the last axis is bit `i` of byte `j`.

    Args:
        values: Booleans, [..., N].

    Returns:
        Bytes, uint8, [..., ceil(N / 8)]; the unused bits of the last one are 0.

    Raises:
        TypeError: If `values` is not bool.

    Example:
        >>> pack_bits(torch.tensor([True, False, True]))  # 1 + 4
        tensor([5], dtype=torch.uint8)
    """
    if values.dtype != torch.bool:
        raise TypeError(f"`values` must be bool, got {values.dtype}.")
    num_bytes = -(-values.shape[-1] // 8)
    padded = torch.nn.functional.pad(values.to(torch.uint8), (0, 8 * num_bytes - values.shape[-1]))
    bits = padded.reshape(*values.shape[:-1], num_bytes, 8)
    return (bits << _positions(values.device)).sum(-1, dtype=torch.uint8)


def unpack_bits(packed: Tensor, n: int) -> Tensor:
    """Return the `n` booleans per row that `pack_bits` packed.

    Args:
        packed: Bytes, uint8, [..., ceil(n / 8)].
        n: Number of booleans on the last axis.

    Returns:
        Booleans, [..., n].

    Raises:
        TypeError: If `packed` is not uint8.
        ValueError: If the last axis of `packed` is not `ceil(n / 8)` long.

    Example:
        >>> unpack_bits(torch.tensor([5], dtype=torch.uint8), 3)
        tensor([ True, False,  True])
    """
    if packed.dtype != torch.uint8:
        raise TypeError(f"`packed` must be uint8, got {packed.dtype}.")
    num_bytes = -(-n // 8)
    if packed.shape[-1:] != (num_bytes,):
        raise ValueError(
            f"`packed` must have {num_bytes} bytes a row for {n} bits, got shape {list(packed.shape)}."
        )
    bits = (packed.unsqueeze(-1) >> _positions(packed.device)) & 1
    return bits.reshape(*packed.shape[:-1], 8 * num_bytes)[..., :n].bool()


def _positions(device: torch.device) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=device)
