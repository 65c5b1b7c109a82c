"""Networks for images of 32 pixels: VGG, and the narrow residual networks of He et al."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_fairprune.experiments.models._initial import he_normal

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
        self.features.apply(he_normal)

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits [B, K] of images [B, C, S, S] with S at least 32."""
        return torch.as_tensor(self.fc(self.features(images).mean(dim=(2, 3))))


class _Block(nn.Module):
    """Two 3x3 convolutions around a shortcut without weights (option A of the paper).

    Where the image halves, the shortcut takes every other pixel and fills new channels with zeros,
    half of them before the old ones and half after.
    """

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.stride, self.added = (1, 0) if before == width else (2, width - before)
        self.conv1 = nn.Conv2d(before, width, 3, stride=self.stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, images: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(images)))))
        shortcut = images
        if self.added:
            half = self.added // 2
            every_other = images[:, :, :: self.stride, :: self.stride]
            shortcut = F.pad(every_other, (0, 0, 0, 0, half, self.added - half))
        return F.relu(out + shortcut)


class CifarResNet(nn.Module):
    """ResNet-20, 32, 44, 56 or 110 for CIFAR (He et al. 2016, section 4.2).

    A 3x3 convolution, three stages of ``(depth - 2) / 6`` blocks with 16, 32 and 64 channels, the
    mean over the image, a linear layer: 0.27 million weights (20), 0.85 (56), 1.7 (110).

    Args:
        depth: layers with weights, 6n + 2.
        num_classes: K.
        in_channels: of the images.

    Raises:
        ValueError: If `depth` is not 6n + 2.

    Example:
        >>> sum(p.numel() for p in CifarResNet(20).parameters())
        269722
    """

    def __init__(self, depth: int = 56, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise ValueError(f"`depth` must be 6n + 2, as 20, 32, 44, 56 or 110, got {depth}.")
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        widths = [16] * (blocks + 1) + [32] * blocks + [64] * blocks
        self.blocks = nn.Sequential(*map(_Block, widths[:-1], widths[1:]))
        self.fc = nn.Linear(64, num_classes)
        self.apply(he_normal)

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits [B, K] of images [B, C, S, S]."""
        out = self.blocks(F.relu(self.bn1(self.conv1(images))))
        return torch.as_tensor(self.fc(out.mean(dim=(2, 3))))
