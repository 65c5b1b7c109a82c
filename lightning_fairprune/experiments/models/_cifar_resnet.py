"""The narrow residual networks of He et al. for CIFAR."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["CifarResNet"]


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
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits [B, K] of images [B, C, S, S]."""
        out = self.blocks(F.relu(self.bn1(self.conv1(images))))
        return torch.as_tensor(self.fc(out.mean(dim=(2, 3))))
