"""Offsets in a network: behind a layer for as long as wanted, or in its bias for good."""

from __future__ import annotations

import copy
from collections.abc import MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_fairprune.offsets._layer import LAYERS, last_layer, shifts


def apply(
    module: nn.Module, offsets: Tensor | Sequence[float], *, layer: str | None = None
) -> RemovableHandle:
    """Add offsets to the logits that a network computes from now on, without a change of its weights.

    A forward hook on the layer that gives the logits adds them: an nn.Linear, or a convolution with kernel size 1, with one
    output for each class; of two classes also one with the logit of class 1 alone. Training, validation and saved
    weights stay as they are; a loss computed from the shifted logits is that of other predictions.

    Args:
        module: The network, or the LightningModule around it.
        offsets: One finite number for each class, [K].
        layer: Name of the layer, if several could give the logits. ``""`` for what the module itself returns: a
            tensor [B, K, ...], or an output with one under ``"logits"``.

    Returns:
        A handle: ``handle.remove()``, or the end of ``with handle:``, ends it.

    Raises:
        ValueError: If the offsets are not finite, the layer cannot be found, several could be it (the message names
            them), or layers follow it that change the order of the classes; with ``layer=""`` in the forward pass, if
            nothing of shape [B, K, ...] is returned.

    Example:
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
        >>> image = torch.zeros(1, 2, 2)
        >>> with torch.no_grad():
        ...     plain = network(image)
        ...     with apply(network, [0.0, 0.5, 0.0]):
        ...         print(network(image) - plain)
        tensor([[0.0000, 0.5000, 0.0000]])
    """
    values = _checked(offsets)
    if layer == "":
        return module.register_forward_hook(_Shift(values, None))
    _, part = last_layer(module, len(values), layer)
    behind = 0 if isinstance(part, nn.Linear) else len(part.kernel_size)
    return part.register_forward_hook(_Shift(shifts(part, values), -1 - behind))


def export(
    module: nn.Module, offsets: Tensor | Sequence[float], *, layer: str | None = None
) -> str:
    """Add offsets to the bias of the layer that gives the logits, so that deployment needs no library.

    The layer is found as `apply` finds it. One without a bias gets one: the saved weights then have one more entry,
    and a network that loads them needs ``bias=True`` in its last layer. In half precision the bias is rounded. A second
    call adds the offsets again.

    Args:
        module: The network, or the LightningModule around it; changed in place.
        offsets: One finite number for each class, [K].
        layer: Name of the layer, if several could give the logits.

    Returns:
        The name of the layer.

    Raises:
        ValueError: As `apply`; if another layer shares the bias, or the class of a layer without a bias computes its
            output in its own way.

    Example:
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False))
        >>> export(network, [0.0, 0.5, 0.0])
        '1'
        >>> network[1].bias
        Parameter containing:
        tensor([0.0000, 0.5000, 0.0000], requires_grad=True)
    """
    values = _checked(offsets)
    name, part = last_layer(module, len(values), layer)
    more = shifts(part, values)
    bias = part.bias
    if bias is None:
        if type(part).forward not in (kind.forward for kind in LAYERS):
            raise ValueError(
                f"{name!r} has no bias, and {type(part).__name__} may ignore one, because it has a forward of its own: "
                "use `apply`."
            )
        part.bias = nn.Parameter(more.to(part.weight), requires_grad=part.weight.requires_grad)
        return name
    if not any(own is bias for own in part.parameters(recurse=False)):
        raise ValueError(f"the bias of {name!r} is computed from other weights: use `apply`.")
    for other, owner in module.named_modules():
        if owner is not part and isinstance(owner, LAYERS) and owner.bias is bias:
            raise ValueError(
                f"the bias of {name!r} must be its own, but {other!r} shares it: use `apply`."
            )
    with torch.no_grad():
        full = torch.promote_types(bias.dtype, torch.float32)
        bias.copy_(bias.to(full) + more.to(bias.device, full))
    return name


class _Shift:
    """Adds numbers to the classes of logits, wherever these live."""

    def __init__(self, values: Tensor, axis: int | None) -> None:
        self._values, self._axis = values, axis

    def __call__(self, _module: nn.Module, _args: Any, output: Any) -> Any:
        if self._axis is not None:
            return self._shifted(output, self._axis)
        found = output.get("logits") if isinstance(output, MutableMapping) else output
        if not isinstance(found, Tensor) or found.ndim < 1:
            what = type(output).__name__
            raise ValueError(f"the module must return logits, or them under 'logits', got {what}.")
        values, size = self._values, len(self._values)
        axis = 1 if found.ndim > 1 and found.shape[1] == size else found.ndim - 1
        if found.shape[axis] != size:
            raise ValueError(
                f"the module must return logits of {size} classes, as there are offsets, got {list(found.shape)}."
            )
        shifted = _Shift(values, axis)._shifted(found, axis)
        if found is output:
            return shifted
        output = copy.copy(output)
        output["logits"] = shifted
        return output

    def _shifted(self, logits: Tensor, axis: int) -> Tensor:
        if self._values.device != logits.device or self._values.dtype != logits.dtype:
            self._values = self._values.to(logits)
        behind = logits.ndim - 1 - axis if axis >= 0 else -1 - axis
        return logits + self._values.reshape(-1, *[1] * behind)


def _checked(offsets: Tensor | Sequence[float]) -> Tensor:
    values = torch.as_tensor(offsets, dtype=torch.float32).detach()
    if values.ndim != 1 or not bool(values.isfinite().all()):
        raise ValueError(
            f"`offsets` must be one finite number for each class, [K], got {list(values.shape)}"
            f"{'' if values.ndim != 1 else ' with ' + str(int((~values.isfinite()).sum())) + ' that are not finite'}."
        )
    return values
