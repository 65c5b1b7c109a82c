"""How long each sample's own gradient is (GraNd): exact norms, without one gradient tensor per sample.

`last_layer_grad_norm` is free with the forward pass of training. `grad_norm` covers the whole network in one
batched forward and backward pass.
"""

from __future__ import annotations

from lightning_fairprune.gradients._last_layer import last_layer_grad_norm
from lightning_fairprune.gradients._norm import grad_norm

__all__ = ["grad_norm", "last_layer_grad_norm"]
