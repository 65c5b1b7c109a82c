"""Features of an unchanged network."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from lightning_fairprune._model.borrowed import borrowed, device_of
from lightning_fairprune._model.trees import first_tensor

At = Literal["output", "input"]
Spatial = Literal["mean", "flatten"]


def features_of(
    model: nn.Module,
    batches: Iterable[Any],
    layer: str,
    *,
    at: At = "output",
    spatial: Spatial = "mean",
    forward: Callable[[nn.Module, Any], Any] | None = None,
) -> Tensor:
    """Return the output, or the input, of a layer for every sample.

    One pass in eval mode without gradients; the model and the random states are restored.

    Args:
        model: Any module; batches are moved to the device of its first parameter.
        batches: The samples in order, not shuffled: each an input tensor, or a tuple or list that begins with one.
        layer: Name of a submodule as in `model.named_modules()`, such as "backbone.fc"; "" is the model itself.
        at: "output" takes what the layer returns, "input" its first argument; the usual features are the input of
            the last linear layer.
        spatial: How [B, C, H, W] becomes a row: "mean" over H and W, [B, C], or "flatten", [B, C H W]. Features with
            another number of axes are flattened.
        forward: ``(model, batch)``, runs the network on a batch of another form; its result is ignored.

    Returns:
        Features [N, D] in the dtype of the layer, on the CPU.

    Raises:
        ValueError: If there is no such layer, it does not run exactly once in a batch, its rows are not the
            samples of the batch, or there are no batches.
        TypeError: If the output or input is no tensor, or a batch does not begin with one.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
        >>> features_of(model, [(torch.ones(1, 2, 2), torch.tensor([0]))], "1", at="input")
        tensor([[1., 1., 1., 1.]])
    """
    for name, value, options in (("at", at, At), ("spatial", spatial, Spatial)):
        if value not in get_args(options):
            raise ValueError(
                f"`{name}` must be one of {', '.join(get_args(options))}, got {value!r}."
            )
    modules = dict(model.named_modules())
    if layer not in modules:
        raise ValueError(
            f"`layer` must be one of {', '.join(filter(None, modules))}, got {layer!r}."
        )
    caught: list[Any] = []

    def hook(_: nn.Module, given: tuple[Any, ...], result: Any) -> None:
        caught.append(result if at == "output" else given[0] if given else None)

    rows: list[Tensor] = []
    with borrowed(model), modules[layer].register_forward_hook(hook), torch.no_grad():
        for batch in batches:
            caught.clear()
            size = None
            if forward is None:
                inputs = first_tensor(batch).to(device_of(model))
                size = len(inputs)
                model(inputs)
            else:
                forward(model, batch)
            rows.append(_as_rows(caught, layer, at, spatial, size).cpu())
    if not rows:
        raise ValueError("`batches` must hold at least one batch, got none.")
    return torch.cat(rows)


def _as_rows(caught: list[Any], layer: str, at: At, spatial: Spatial, size: int | None) -> Tensor:
    if len(caught) != 1:
        raise ValueError(
            f"`layer` {layer!r} must run exactly once in a batch, it ran {len(caught)} times."
        )
    value = caught[0]
    if not isinstance(value, Tensor):
        raise TypeError(
            f"the {at} of {layer!r} must be a tensor, got {type(value).__name__}: choose a layer inside it."
        )
    if not value.dim() or size not in (None, len(value)):
        raise ValueError(
            f"the {at} of {layer!r} must have one row per sample, got {list(value.shape)} for {size} samples."
        )
    if value.dim() == 4 and spatial == "mean":
        return value.mean((2, 3))
    return value.flatten(1) if value.dim() > 1 else value[:, None]
