"""Saliency without data: magnitude and chance."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from lightning_fairprune.criteria._parameters import chosen, full_precision


# Masks made of inference tensors could not be trained through, hence the decorators.
@torch.inference_mode(False)
def magnitude(model: nn.Module, *, parameters: Iterable[str] | None = None) -> dict[str, Tensor]:
    r"""Return the size of each weight, `|\theta|`.

    The usual baseline (Han et al., NeurIPS 2015, arXiv 1506.02626). Weights of small layers are larger at
    initialisation, so one threshold for all layers may empty the wide ones at high sparsity.

    Args:
        model: The network.
        parameters: Names of the parameters to score; None takes those of `prunable`.

    Returns:
        Saliency >= 0 by parameter name, shape and device of the weight, float32 (float64 for float64 weights).

    Raises:
        ValueError: If a name is unknown, or there is no weight to score.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> _ = model.weight.data.copy_(torch.tensor([[2.0, -3.0]]))
        >>> magnitude(model)
        {'weight': tensor([[2., 3.]])}
    """
    weights = chosen(model, parameters)
    return {name: full_precision(weight).abs() for name, weight in weights.items()}


@torch.inference_mode(False)
def random(
    model: nn.Module, *, seed: int = 0, parameters: Iterable[str] | None = None
) -> dict[str, Tensor]:
    """Return a uniform random number in [0, 1) for each weight.

    It depends only on `seed`, any integer, and on the name and shape of the parameter: all ranks, devices and dtypes get
    the same, whatever torch's random state. Otherwise as `magnitude`.

    Example:
        >>> first = random(nn.Linear(3, 2), seed=1)["weight"]
        >>> again = random(nn.Linear(3, 2), seed=1)["weight"]
        >>> first.shape, torch.equal(first, again)
        (torch.Size([2, 3]), True)
    """
    return {
        name: _uniform(f"{seed} {name} {tuple(weight.shape)}", weight.shape).to(
            full_precision(weight)
        )
        for name, weight in chosen(model, parameters).items()
    }


def _uniform(key: str, shape: torch.Size) -> Tensor:
    digest = hashlib.sha256(key.encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))
    return torch.rand(shape, generator=generator)
