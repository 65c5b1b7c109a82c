"""The wide residual networks of He et al., for ImageNet and for smaller images."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from lightning_fairprune.experiments.models._initial import he_normal

_BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}  # of each stage


def _convolution(before: int, after: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(before, after, size, stride, padding=size // 2, bias=False)


class _Residual(nn.Module):
    """A block with its shortcut; the parts have torchvision's names, so that its weights fit."""

    def __init__(self, before: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        after = 4 * width if bottleneck else width
        if bottleneck:
            self.conv1 = _convolution(before, width, 1)
            self.conv2 = _convolution(width, width, 3, stride)
            self.conv3 = _convolution(width, after, 1)
            self.bn3 = nn.BatchNorm2d(after)
        else:
            self.conv1 = _convolution(before, width, 3, stride)
            self.conv2 = _convolution(width, width, 3)
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.bottleneck = bottleneck
        self.downsample: nn.Module | None = None
        if stride > 1 or before != after:
            self.downsample = nn.Sequential(
                _convolution(before, after, 1, stride), nn.BatchNorm2d(after)
            )

    def forward(self, images: Tensor) -> Tensor:
        shortcut = images if self.downsample is None else self.downsample(images)
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(images)))))
        if self.bottleneck:
            out = self.bn3(self.conv3(self.relu(out)))
        return torch.as_tensor(self.relu(out + shortcut))


def _stage(before: int, width: int, blocks: int, stride: int, bottleneck: bool) -> nn.Sequential:
    after = 4 * width if bottleneck else width
    first = _Residual(before, width, stride, bottleneck)
    return nn.Sequential(
        first, *(_Residual(after, width, 1, bottleneck) for _ in range(blocks - 1))
    )


class ResNet(nn.Module):
    """ResNet-18 or ResNet-50 (He et al. 2016), with the stem of ImageNet or one for smaller images.

    The ``"imagenet"`` stem is a 7x7 convolution of stride 2 and a max pooling; ``"small"`` is a 3x3
    convolution that keeps the size, as is usual for CIFAR and Tiny ImageNet. As everywhere today, the
    stride of a bottleneck is in its 3x3 convolution.

    Args:
        depth: 18 or 50.
        num_classes: K.
        stem: ``"imagenet"`` or ``"small"``.
        pretrained: starts from torchvision's weights for ImageNet (IMAGENET1K_V1, downloaded), all but
            the last layer.

    Raises:
        ValueError: If there is no such depth or stem, or weights for a stem that has none.

    Example:
        >>> sum(p.numel() for p in ResNet(18, num_classes=1000).parameters())
        11689512
    """

    def __init__(
        self,
        depth: Literal[18, 50] = 18,
        num_classes: int = 1000,
        stem: Literal["imagenet", "small"] = "imagenet",
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        if depth not in _BLOCKS:
            raise ValueError(f"`depth` must be one of {[*_BLOCKS]}, got {depth}.")
        if stem not in ("imagenet", "small"):
            raise ValueError(f"`stem` must be 'imagenet' or 'small', got {stem!r}.")
        if pretrained and stem != "imagenet":
            raise ValueError(f"`pretrained` needs stem='imagenet', got {stem!r}.")
        large = stem == "imagenet"
        self.conv1 = _convolution(3, 64, 7, 2) if large else _convolution(3, 64, 3)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1) if large else nn.Identity()
        bottleneck, (one, two, three, four) = depth == 50, _BLOCKS[depth]
        times = 4 if bottleneck else 1
        self.layer1 = _stage(64, 64, one, 1, bottleneck)
        self.layer2 = _stage(64 * times, 128, two, 2, bottleneck)
        self.layer3 = _stage(128 * times, 256, three, 2, bottleneck)
        self.layer4 = _stage(256 * times, 512, four, 2, bottleneck)
        self.fc = nn.Linear(512 * times, num_classes)
        self.apply(he_normal)
        if pretrained:
            self._load_pretrained(depth)

    def _load_pretrained(self, depth: int) -> None:
        try:
            from torchvision.models import get_model  # type: ignore[import-untyped]
        except ImportError as error:
            raise ImportError(
                "`pretrained` weights come with torchvision: pip install 'lightning-fairprune[vision]'."
            ) from error
        weights = get_model(f"resnet{depth}", weights="IMAGENET1K_V1").state_dict()
        weights |= {f"fc.{name}": value for name, value in self.fc.state_dict().items()}
        self.load_state_dict(weights)

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits [B, K] of images [B, 3, S, S]."""
        out = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        return torch.as_tensor(self.fc(out.mean(dim=(2, 3))))
