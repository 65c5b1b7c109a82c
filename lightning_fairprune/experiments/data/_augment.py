"""What happens to a batch of images on the device: shift, flip, normalisation."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Border = Literal["reflect", "zero"]


def shift_and_flip(
    images: Tensor, shift: int, flip: bool = True, border: Border = "reflect"
) -> Tensor:
    """Returns the images shifted at random in both directions, and half of them mirrored.

    The same as padding by `shift` pixels and cropping at random, but all images of the batch at once
    and without a padded copy.

    Args:
        images: [B, H, W, C], as is what is returned.
        shift: at most so many pixels, less than the smaller side.
        flip: whether to mirror half of the images from left to right.
        border: what comes in over the edge: the ``"reflect"``-ed image or ``"zero"``.

    Example:
        >>> images = torch.arange(4).view(1, 1, 4, 1)
        >>> shift_and_flip(images, shift=0, flip=False).flatten().tolist()
        [0, 1, 2, 3]
    """
    batch, height, width, channels = images.shape
    rows, rows_inside = _source(batch, height, shift, images.device)
    columns, columns_inside = _source(batch, width, shift, images.device)
    if flip:
        mirrored = torch.rand(batch, 1, device=images.device) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
        columns_inside = torch.where(mirrored, columns_inside.flip(1), columns_inside)
    # One gather of whole pixels, three times as fast as images[b, rows, columns].
    first = torch.arange(batch, device=images.device)[:, None, None] * height
    source = (first + rows[:, :, None]) * width + columns[:, None, :]
    moved = images.reshape(-1, channels).index_select(0, source.flatten()).view_as(images)
    if border == "zero" and shift:
        moved = moved * (rows_inside[:, :, None] & columns_inside[:, None, :])[..., None]
    return moved


def _source(batch: int, size: int, shift: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns which row each row comes from, int64 [B, size], and whether that is inside."""
    start = torch.randint(-shift, shift + 1, (batch, 1), device=device)
    rows = start + torch.arange(size, device=device)
    inside = (rows >= 0) & (rows < size)
    return size - 1 - (size - 1 - rows.abs()).abs(), inside


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Returns uint8 images [B, H, W, C] as float32 [B, C, H, W] in channels-last memory.

    `mean` and `std` are those of each channel in units of the images, [C].

    Example:
        >>> normalise(torch.tensor([[[[0], [255]]]]), torch.tensor([127.5]), torch.tensor([127.5]))
        tensor([[[[-1.,  1.]]]])
    """
    return images.float().sub_(mean).div_(std).permute(0, 3, 1, 2)
