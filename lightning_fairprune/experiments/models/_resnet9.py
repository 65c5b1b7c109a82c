"""The small residual network that two CPU cores train on CIFAR-10 in minutes."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ResNet9(nn.Module):
    """Eight 3x3 convolutions, two of the blocks residual, and a linear layer.

    The shape of David Page's network for DAWNBench (2018), a quarter as wide by default: 412,954 weights
    for coloured images of 10 classes. Pooling sits between convolution and normalisation, so that the
    elementwise layers see a quarter of the pixels.

    Args:
        num_classes: K.
        in_channels: of the images, which have at least 8 pixels a side.
        width: channels of the first convolution; the last has eight times as many.

    Raises:
        ValueError: If `width` is below 1.

    Example:
        >>> sum(p.numel() for p in ResNet9().parameters())
        412954
        >>> ResNet9(num_classes=3)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 3])
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3, width: int = 16) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"`width` must be at least 1 channel, got {width}.")
        self.net = nn.Sequential(
            _convolution(in_channels, width),
            _convolution(width, 2 * width, pool=True),
            _Residual(2 * width),
            _convolution(2 * width, 4 * width, pool=True),
            _convolution(4 * width, 8 * width, pool=True),
            _Residual(8 * width),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.fc = nn.Linear(8 * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits [B, K] of images [B, C, S, S]."""
        return torch.as_tensor(self.fc(self.net(images)))


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.way = nn.Sequential(_convolution(channels, channels), _convolution(channels, channels))

    def forward(self, images: Tensor) -> Tensor:
        return images + torch.as_tensor(self.way(images))


def _convolution(before: int, after: int, pool: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(before, after, 3, padding=1, bias=False)]
    if pool:
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.BatchNorm2d(after), nn.ReLU(inplace=True))
