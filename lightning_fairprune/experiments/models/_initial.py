"""How weights are drawn."""

from __future__ import annotations

import math

from torch import nn


def he_normal(module: nn.Module) -> None:
    """Draws the weights of a convolution as He et al. (2015) do."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def xavier(module: nn.Module) -> None:
    """Draws the weights of convolutions and linear layers as the published code of DRoP does."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.xavier_normal_(module.weight, gain=math.sqrt(2))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
