"""VGG with batch normalisation for small images."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

__all__ = ["VGG"]

_WIDTHS = (64, 128, 256, 512, 512)
_CONVOLUTIONS = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}  # of each width


class VGG(nn.Module):
    """VGG-16 or VGG-19 (Simonyan and Zisserman 2015) with batch normalisation, for images of 32 pixels.

    Thirteen or sixteen 3x3 convolutions in five stages, each stage ending in a max pooling, then the
    mean over what is left of the image and one linear layer, as is usual for CIFAR: 14.7 million
    weights (VGG-16, 10 classes), 20.1 million (VGG-19, 100 classes).

    Args:
        depth: 16 or 19.
        num_classes: K.
        in_channels: of the images.

    Raises:
        ValueError: If there is no VGG of that depth.

    Example:
        >>> sum(p.numel() for p in VGG(16).parameters())
        14724042
    """

    def __init__(
        self, depth: Literal[16, 19] = 16, num_classes: int = 10, in_channels: int = 3
    ) -> None:
        super().__init__()
        if depth not in _CONVOLUTIONS:
            raise ValueError(f"`depth` must be one of {[*_CONVOLUTIONS]}, got {depth}.")
        layers: list[nn.Module] = []
        before = in_channels
        for width, convolutions in zip(_WIDTHS, _CONVOLUTIONS[depth], strict=True):
            for _ in range(convolutions):
                layers += [
                    nn.Conv2d(before, width, 3, padding=1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(inplace=True),
                ]
                before = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(before, num_classes)
        for module in self.features:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits [B, K] of images [B, C, S, S] with S at least 32."""
        return torch.as_tensor(self.fc(self.features(images).mean(dim=(2, 3))))
