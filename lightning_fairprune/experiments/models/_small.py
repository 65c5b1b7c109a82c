"""Networks of the papers' small experiments, and one for two CPU cores."""

from __future__ import annotations

import itertools
from functools import partial

import torch
from torch import Tensor, nn


class LeNet5(nn.Module):
    """LeNet-5 (LeCun et al. 1998) with ReLU, max pooling and a full second convolution.

    Two 5x5 convolutions with 6 and 16 channels, linear layers of 120 and 84: 61,706 weights for grey
    images, 62,006 for coloured ones (10 classes).

    Args:
        num_classes: K.
        in_channels: of the images.
        image_size: 28 or 32 pixels; images of 28 are padded by 2.

    Raises:
        ValueError: If `image_size` is neither.

    Example:
        >>> sum(p.numel() for p in LeNet5(image_size=28).parameters())
        61706
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 1, image_size: int = 32) -> None:
        super().__init__()
        if image_size not in (28, 32):
            raise ValueError(f"`image_size` must be 28 or 32 pixels, got {image_size}.")
        first = nn.Conv2d(in_channels, 6, 5, padding=(32 - image_size) // 2)
        relu, pool = partial(nn.ReLU, inplace=True), partial(nn.MaxPool2d, 2)
        convolutions = (first, relu(), pool(), nn.Conv2d(6, 16, 5), relu(), pool(), nn.Flatten())
        linear = (nn.Linear(16 * 5 * 5, 120), relu(), nn.Linear(120, 84), relu())
        self.net = nn.Sequential(*convolutions, *linear, nn.Linear(84, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits [B, K] of images [B, C, S, S]."""
        return torch.as_tensor(self.net(images))


class LeNet300100(nn.Module):
    """LeNet-300-100 (LeCun et al. 1998): linear layers of 300 and 100, 266,610 weights for MNIST.

    Args:
        num_classes: K.
        in_features: numbers in an image.

    Example:
        >>> sum(p.numel() for p in LeNet300100().parameters())
        266610
    """

    def __init__(self, num_classes: int = 10, in_features: int = 28 * 28) -> None:
        super().__init__()
        relu = partial(nn.ReLU, inplace=True)
        hidden = (nn.Linear(in_features, 300), relu(), nn.Linear(300, 100), relu())
        self.net = nn.Sequential(nn.Flatten(), *hidden, nn.Linear(100, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits [B, K] of images [B, C, S, S]."""
        return torch.as_tensor(self.net(images))


class SmallCNN(nn.Module):
    """Four 3x3 convolutions with batch normalisation, mean over the image, a linear layer.

    25,354 weights for coloured images of 10 classes. Pooling sits between convolution and
    normalisation, so that the costly elementwise layers see a quarter of the pixels. Trains on
    CIFAR-10 at some thousand images a second on a CPU core.

    Args:
        num_classes: K.
        in_channels: of the images, which have at least 8 pixels a side.

    Example:
        >>> sum(p.numel() for p in SmallCNN().parameters())
        25354
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        widths = (in_channels, 16, 24, 32, 48)
        layers: list[nn.Module] = []
        for i, (before, after) in enumerate(itertools.pairwise(widths)):
            layers.append(nn.Conv2d(before, after, 3, padding=1, bias=False))
            if i < 3:
                layers.append(nn.MaxPool2d(2))
            layers += [nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
        self.net = nn.Sequential(
            *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, num_classes)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits [B, K] of images [B, C, S, S]."""
        return torch.as_tensor(self.net(images))
