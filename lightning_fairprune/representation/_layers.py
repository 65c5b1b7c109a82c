"""Layer by layer: what two networks make of the same samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_fairprune._model.borrowed import borrowed, device_of
from lightning_fairprune._model.trees import first_tensor
from lightning_fairprune.representation._measures import FROM_PRODUCTS, linear_cka
from lightning_fairprune.representation._products import Products, rows_of

_CONVOLUTIONS = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d
)  # fmt: skip
_CHANNELS_LAST = (nn.Linear, nn.LayerNorm)

Measure = Callable[[Tensor, Tensor], Tensor]
Forward = Callable[[nn.Module, Any], Any]


def compare_layers(
    dense: nn.Module,
    pruned: nn.Module,
    batches: Iterable[Any],
    layers: Sequence[str] | None = None,
    *,
    measure: Measure = linear_cka,
    forward: Forward | None = None,
    positions: int = 256,
) -> dict[str, float]:
    """Returns how alike the outputs of each layer of two networks are on the same samples.

    One pass through both in evaluation mode and without gradients; both, and random states, are restored, also after an
    error.

    Every position of a feature map, and every token, is a row. For `linear_cka` and `svcca`, also with keywords
    (``partial(linear_cka, debiased=True)``), (D1 + D2)^2 float64 numbers are kept per layer, else all rows.

    Args:
        dense: Any module, before `torch.compile`; batches are moved to the device of its first parameter.
        pruned: A module with layers of the same names, such as a copy that was pruned; they may have other widths.
        batches: The samples, such as a DataLoader: each an input tensor, or a tuple or list that begins with one.
        layers: Names as in `dense.named_modules()`; None for all Conv and Linear layers of both that run.
        measure: ``(x, y) -> scalar`` of features [n, D1] and [n, D2].
        forward: ``(model, batch)``, runs a network on a batch of another form; the result is ignored.
        positions: At most so many of a feature map, or tokens, are used of each sample, spread over rows and columns.

    Returns:
        The value of each layer, in the order of `layers` or of the network; NaN for one that is constant.

    Raises:
        ValueError: If there is no such layer, a layer runs in one network only or with other samples or positions, its
            features are not finite or too few for the measure, there are no batches, or `positions` is not positive.
        TypeError: If a layer returns no tensor, or a batch does not begin with one.

    Example:
        >>> dense = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1))
        >>> x = torch.tensor([[0.0, 1.0], [1.0, 3.0], [2.0, -1.0], [1.0, 1.0]])
        >>> {name: round(value, 4) for name, value in compare_layers(dense, dense, [x]).items()}
        {'0': 1.0, '2': 1.0}
    """
    if positions < 1:
        raise ValueError(f"`positions` must be at least 1, got {positions}.")
    names = _names(dense, pruned, layers)
    comparisons: dict[str, _Layer] = {}
    batch = None
    with borrowed(dense), borrowed(pruned), torch.no_grad():
        for batch in batches:
            first = _outputs(dense, names, batch, forward, positions)
            second = _outputs(pruned, names, batch, forward, positions)
            for name in names:
                if name in first or name in second:
                    x, y = _both(name, first, second)
                    comparisons.setdefault(name, _Layer(measure)).add(x, y)
    if batch is None:
        raise ValueError("`batches` must hold at least one batch, got none.")
    ran = [name for name in names if name in comparisons]
    if not ran or (layers is not None and len(ran) < len(names)):
        missing = ", ".join(repr(name) for name in names if name not in comparisons)
        raise ValueError(f"`layers` must run in the networks, {missing} did not.")
    return {name: comparisons[name].value(name) for name in ran}


class _Layer:
    """The rows of one layer while these are few, then their products."""

    def __init__(self, measure: Measure) -> None:
        self._measure = measure
        keywords: dict[str, Any] = {}
        base: Any = measure
        if isinstance(measure, partial) and not measure.args:
            base, keywords = measure.func, measure.keywords
        from_products = FROM_PRODUCTS.get(base)
        self._from_products = from_products and partial(from_products, **keywords)
        self._products: Products | None = None
        self._rows: list[tuple[Tensor, Tensor]] = []

    def add(self, x: Tensor, y: Tensor) -> None:
        self._rows.append((x, y.to(x.device)))
        many = sum(len(rows) for rows, _ in self._rows) > max(x.shape[1], y.shape[1])
        if many and self._from_products is not None:
            self._sum_up()

    def value(self, name: str) -> float:
        if self._products is not None and self._rows:
            self._sum_up()
        try:
            if self._products is None or self._from_products is None:
                return float(self._measure(*self._kept()))
            self._products.check_finite()
            return float(self._from_products(self._products))
        except ValueError as error:
            raise ValueError(f"layer {name!r} cannot be compared: {error}") from error

    def _sum_up(self) -> None:
        x, y = self._kept()
        if self._products is None:
            self._products = Products(x, y)
        else:
            self._products.add(x, y)
        self._rows.clear()

    def _kept(self) -> tuple[Tensor, Tensor]:
        first, second = zip(*self._rows, strict=True)
        return torch.cat(first), torch.cat(second)


def _names(dense: nn.Module, pruned: nn.Module, layers: Sequence[str] | None) -> list[str]:
    known = [dict(model.named_modules()) for model in (dense, pruned)]
    if layers is None:
        kinds = (*_CONVOLUTIONS, nn.Linear)
        names = [
            name
            for name, module in known[0].items()
            if isinstance(module, kinds) and isinstance(known[1].get(name), kinds)
        ]
        if not names:
            raise ValueError(
                "`dense` and `pruned` must share the name of at least one Conv or Linear layer, found "
                "none: name `layers`."
            )
        return names
    for name in layers:
        for which, modules in zip(("dense", "pruned"), known, strict=True):
            if name not in modules:
                raise ValueError(
                    f"`layers` must name layers of both networks, got {name!r}, and `{which}` has "
                    f"{', '.join(filter(None, modules)) or 'none'}."
                )
    if not layers:
        raise ValueError("`layers` must name at least one layer, got none.")
    return list(dict.fromkeys(layers))


def _outputs(
    model: nn.Module, names: Sequence[str], batch: Any, forward: Forward | None, positions: int
) -> dict[str, Tensor]:
    """Returns the rows of each layer that ran; of one that ran several times, those of every time."""
    found: dict[str, list[Tensor]] = {}
    modules = dict(model.named_modules())

    def hook(name: str, module: nn.Module, _: Any, result: Any) -> None:
        found.setdefault(name, []).append(_rows(name, module, result, positions))

    handles: list[Any] = []
    try:
        # Only while this network runs: the other may be the same one, or share layers with it.
        handles += [modules[n].register_forward_hook(partial(hook, n)) for n in names]
        if forward is not None:
            forward(model, batch)
        else:
            model(first_tensor(batch).to(device_of(model)))
    finally:
        for handle in handles:
            handle.remove()
    return {name: torch.cat(rows) for name, rows in found.items()}


def _rows(name: str, module: nn.Module, result: Any, positions: int) -> Tensor:
    if not isinstance(result, Tensor):
        raise TypeError(
            f"layer {name!r} must return a tensor, got {type(result).__name__}: choose one inside it."
        )
    if result.ndim < 2 or not result.is_floating_point():
        raise ValueError(
            f"layer {name!r} must return floating point features of each sample, got {result.dtype} of "
            f"shape {list(result.shape)}."
        )
    # Three axes are samples, tokens and units, but out of a convolution.
    last = result.ndim == 3 and not isinstance(module, _CONVOLUTIONS)
    last = last or isinstance(module, _CHANNELS_LAST)
    features = result.movedim(-1 if last else 1, -1).flatten(1, -2) if result.ndim > 2 else result
    if features.ndim == 3 and features.shape[1] > positions:
        features = features[:, _spread(positions, features.shape[1]).to(features.device)]
    rows = rows_of(features, -1)
    # MPS has no float64.
    return rows.cpu() if rows.device.type == "mps" else rows


def _spread(count: int, total: int) -> Tensor:
    """Returns some of the positions of a map, int64 [count], none twice, in steps of the golden section.

    A plain stride divides the width of most maps and takes a few of their columns only, half of them at the padded edge.
    """
    step = round(total * 0.6180339887498949)
    while math.gcd(step, total) > 1:
        step += 1
    return (torch.arange(count) * step % total).sort().values


def _both(
    name: str, first: Mapping[str, Tensor], second: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    if name not in first or name not in second:
        which = "dense" if name in first else "pruned"
        raise ValueError(
            f"layer {name!r} must run in both networks, it ran in the {which} one only."
        )
    x, y = first[name], second[name]
    if len(x) != len(y):
        raise ValueError(
            f"layer {name!r} must have the same samples and positions in both networks, got {len(x)} and "
            f"{len(y)} rows."
        )
    return x, y
