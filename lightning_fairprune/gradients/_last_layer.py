"""The gradient of the last layer in closed form."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lightning_fairprune import signals

if TYPE_CHECKING:
    from torch import Tensor


def last_layer_grad_norm(
    logits: Tensor, target: Tensor, features: Tensor, *, bias: bool = True
) -> Tensor:
    """Return the gradient norm of each sample's cross entropy with respect to the last linear layer.

    With `z = W h + b`, the gradient is `e h^T` for W and `e` for b, where `e = softmax(z) - onehot(y)`. So the norm is
    `||e||_2 sqrt(||h||^2 + 1)`, without the 1 for a layer without bias: the GraNd score of Paul et al., "Deep Learning on
    a Data Diet" (NeurIPS 2021, arXiv 2107.07075), of one layer. No gradient is computed.
    `grad_norm(model, batches, loss_fn, parameters=model.fc.parameters())` gives the same for any loss.

    Args:
        logits: Class scores z before the softmax, floating, [B, C].
        target: True classes in [0, C), int64, [B].
        features: Inputs h of the last layer, floating, [B, D].
        bias: Whether the last layer has a bias.

    Returns:
        Norms in [0, inf), float32 (float64 where an argument is), [B].

    Raises:
        ValueError: If the shapes do not agree.
        TypeError: If `logits` or `features` is not floating or `target` is not integer.

    Example:
        e = (.5, -.5) has length sqrt(.5), the features have length 7, and sqrt(.5 * (49 + 1)) = 5.

        >>> features = torch.tensor([[2.0, 3.0, 6.0]])
        >>> last_layer_grad_norm(torch.tensor([[0.0, 0.0]]), torch.tensor([1]), features)
        tensor([5.])
    """
    error = signals.el2n(logits, target)
    if features.ndim != 2 or len(features) != len(logits):
        raise ValueError(
            f"`features` must be [B, D] with B = {len(logits)} as in `logits`, got {list(features.shape)}."
        )
    if not features.is_floating_point():
        raise TypeError(f"`features` must be floating, got {features.dtype}.")
    wide = features.detach().to(torch.promote_types(features.dtype, error.dtype))
    return error * (wide.square().sum(1) + float(bias)).sqrt()
