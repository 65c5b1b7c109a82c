"""Finds the layer whose output is the logits."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, jit, nn

Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
# What may follow: an offset before it changes the order of the classes as one behind it does.
_KEEPS_ORDER = (
    nn.Identity,
    nn.Flatten,
    nn.Unflatten,
    nn.Sigmoid,
    nn.LogSigmoid,
    nn.Softmax,
    nn.Softmax2d,
    nn.LogSoftmax,
    nn.Dropout,
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AvgPool3d,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
    nn.Upsample,
)
_WHOLE = 'give the offsets to what the module returns, `apply(module, offsets, layer="")`'


def last_layer(module: nn.Module, num_classes: int, name: str | None) -> tuple[str, Layer]:
    """Returns the name and the only layer with one output for each class, or the one of that name.

    With two classes it may have one output, the logit of class 1.

    Raises:
        ValueError: If there is none, or there are several, or what follows does not keep the order of the classes.
    """
    if name is None:
        name = _only(module, num_classes)
    part = dict(module.named_modules(remove_duplicate=False)).get(name)
    part = getattr(part, "_orig_mod", part)  # of torch.compile
    if not isinstance(part, LAYERS):
        what = "there is no such module" if part is None else f"it is a {type(part).__name__}"
        raise ValueError(
            f"`layer` must name a Linear or Conv layer that gives the logits, {name!r} does not: {what}."
        )
    if _width(part) not in _widths(num_classes):
        raise ValueError(
            f"`layer` must have one output for each of {num_classes} offsets, {name!r} has {_width(part)}."
        )
    for follower in _followers(module, part):
        if not isinstance(follower, _KEEPS_ORDER):
            raise ValueError(
                f"the output of {name!r} must be the logits, but {type(follower).__name__} follows it: {_WHOLE}."
            )
    return name, part


def shifts(layer: Layer, offsets: Tensor) -> Tensor:
    """Returns what to add to the outputs of a layer: one number for the logit of class 1 of two."""
    return offsets[1:] - offsets[:1] if _width(layer) < len(offsets) else offsets


def _only(module: nn.Module, num_classes: int) -> str:
    by_width = (_of_width(module, width) for width in _widths(num_classes))
    found = next(filter(None, by_width), [])
    if len(found) == 1:
        return found[0]
    if found:
        why = f"there are {', '.join(map(repr, found))}: name the one that gives the predictions with `layer=`"
    elif any(isinstance(part, jit.ScriptModule) for part in module.modules()):
        why = "the module is scripted: do it before torch.jit.script"
    else:
        why = f"there is none: {_WHOLE}"
    raise ValueError(
        f"{type(module).__name__} must have exactly one Linear or 1x1 Conv layer with an output for each of "
        f"{num_classes} offsets, but {why}."
    )


def _widths(num_classes: int) -> tuple[int, ...]:
    return (2, 1) if num_classes == 2 else (num_classes,)


def _width(layer: Layer) -> int:
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


def _of_width(module: nn.Module, width: int) -> list[str]:
    return [
        name
        for name, part in module.named_modules()
        if isinstance(part, LAYERS)
        and _width(part) == width
        and (isinstance(part, nn.Linear) or set(part.kernel_size) == {1})
    ]


def _followers(module: nn.Module, layer: Layer) -> Iterator[nn.Module]:
    """Yields the modules without parts that come after a layer in each nn.Sequential around it."""
    for sequence in module.modules():
        if isinstance(sequence, nn.Sequential):
            parts = [list(part.modules()) for part in sequence]
            at = next((i for i, inner in enumerate(parts) if layer in inner), len(parts))
            yield from (p for inner in parts[at + 1 :] for p in inner if not [*p.children()])
