"""Parameters that are not the weights that layers compute with: zeros in them may be none there."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from lightning_fairprune._model.borrowed import borrowed, isolated_rng
from lightning_fairprune._model.matrices import CONVOLUTIONS
from lightning_fairprune._model.uses import Made, Uses

_REMEDY = "leave it out (`exclude` of WeightPruning, `parameters` of a criterion), or train the layer without it"


def check_layers(model: nn.Module, names: Collection[str], *, masked: bool = False) -> None:
    """Raises if a layer is known to compute with other zeros than those of its parameters of these names.

    Layers of torch that use their parameters as they are cost nothing; others are called once on made-up input.
    With `masked` a weight that has zeros of its own raises, too.
    """
    _check_adapters(model, names)
    every = [made for _, uses in _trials(model, names) for made in uses]
    check_uses(model, names, every, masked=masked)


def check_uses(
    model: nn.Module, names: Collection[str], uses: Iterable[Made], *, masked: bool = False
) -> None:
    """Raises if one of the tensors `uses`, made of parameters, has other zeros than those of these names."""
    parameters = dict(model.named_parameters())
    found: dict[str, str] = {}
    for made in uses:
        for name in sorted(made.roots & set(names) - found.keys()):
            if reason := _difference(name, made, parameters, masked):
                found[name] = reason
    if found:
        first, *others = found
        named = ", ".join(f"`{name}`" for name in others[:3])
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        same = f" The same holds for {named}{more}." if others else ""
        raise ValueError(
            f"`{first}` is not the weight that its layer computes with{found[first]}{same}"
        )


def check_finite(model: nn.Module, names: Collection[str]) -> None:
    """Raises if a layer computes with a weight that is not finite, as where a direction of weight_norm is all zero."""
    for name, uses in _trials(model, names):
        if not all(bool(made.out.isfinite().all()) for made in uses):
            raise ValueError(
                f"`{name}`: all weights of one row are removed, and its layer divides by their norm, which makes the weight "
                "that is used infinite: lower the sparsity, or leave it out with `exclude`."
            )


def _difference(name: str, made: Made, parameters: Mapping[str, nn.Parameter], masked: bool) -> str:
    """Returns in words how the zeros of a tensor differ from those of the parameter in it; empty if they do not."""
    values = {}
    for root in made.roots:
        value = parameters[root].detach()
        # Others may be pruned already, or begin at 0, as half of an adapter does.
        values[root] = torch.where(value == 0, _trial(value)[0], value)
    dense, removed = _trial(parameters[name].detach())
    sparse = dense.masked_fill(removed, 0)
    try:
        with isolated_rng(), torch.no_grad():
            before, after = (made.again({**values, name: value}) for value in (dense, sparse))
    except Exception:  # what the user's code may raise on other values
        return ""
    zeros, own, expected = int((after == 0).sum()), int((before == 0).sum()), int(removed.sum())
    if made.is_random:
        lost = zeros < expected
    elif after.numel() == dense.numel():
        lost = zeros < max(own, expected) if own else zeros != expected
    else:  # a part of it, or several
        share, changed = expected / dense.numel(), int((before != after).sum())
        chance = max(0.07, 1 / math.sqrt(max(after.numel(), 1)))
        lost = zeros - own < (share - chance) * min(expected, changed)
    if lost or not bool(after.isfinite().all()):
        made_of = "" if made.roots == {name} else f", which is made of {_listed(made.roots)}"
        return (
            f"{made_of}: {expected} zeros in a trial become {zeros} there, so that the sparsity would not be that of the "
            f"weight used; {_REMEDY}."
        )
    if masked and own and not made.is_random:
        return (
            f": {own} of {before.numel()} weights are masked there, and not in the parameter, so that the sparsity would not "
            "be that of the weight used; remove the mask (`torch.nn.utils.prune.remove`), which leaves the zeros in the "
            "parameter, or leave it out with `exclude`."
        )
    return ""


def _trial(value: Tensor) -> tuple[Tensor, Tensor]:
    """Returns values without zeros and small ones, and which of them to remove; the first of each row stays."""
    generator = torch.Generator().manual_seed(0)
    share = torch.rand(value.shape, generator=generator).to(value.device)
    signs = torch.where(value < 0, -1.0, 1.0)
    scale = value.abs().amax().clamp(min=1e-3) if value.numel() else 1.0
    removed = torch.rand(value.shape, generator=generator).to(value.device) < 0.8
    if value.ndim > 1 and value[0].numel() > 1:
        removed.flatten(1)[:, :1] = False
    return (signs * (0.5 + 0.5 * share) * scale).to(value.dtype), removed


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names))


def _trials(model: nn.Module, names: Collection[str]) -> Iterator[tuple[str, list[Made]]]:
    """Yields what the layers that have parameters of these names compute with in their place."""
    wanted = set(names)
    parameters = {id(p): name for name, p in model.named_parameters()}
    for layer in model.modules():
        if not _may_hide(layer):
            continue
        every = {parameters[id(p)]: p for p in layer.parameters() if id(p) in parameters}
        own = [name for name in every if name in wanted]
        if not own:
            continue
        uses = Uses(every)
        with borrowed(layer):
            for part in layer.modules():  # observers of quantisation resize their buffers
                part._buffers.update(
                    {n: b.clone() for n, b in part._buffers.items() if b is not None}
                )
            found = _used(layer, uses)
        yield own[0], found


def _may_hide(layer: nn.Module) -> bool:
    """Whether a layer that can be tried computes otherwise than torch's own of its kind."""
    if _is_script(layer):
        return False
    if hasattr(layer, "parametrizations"):
        return True
    if not isinstance(layer, (nn.Linear, *CONVOLUTIONS)):
        return False
    own = getattr(type(layer).forward, "__module__", "")
    return bool(layer._forward_pre_hooks) or not own.startswith("torch.nn.modules.")


def _used(layer: nn.Module, uses: Uses) -> list[Made]:
    x = _input_of(layer)
    found: list[Made] = []
    try:
        with torch.no_grad(), uses:
            if x is None:
                for name, _ in layer.get_submodule("parametrizations").named_children():
                    made = uses.made(getattr(layer, name))
                    found += [] if made is None else [made]
            else:
                for hook in layer._forward_pre_hooks.values():
                    if _of_torch(hook):
                        hook(layer, (x,))
                layer.forward(x)
    except Exception:  # it takes another input; the first step of a fit shows what it computes
        return found
    return found + uses.through


def _of_torch(hook: Callable[..., object]) -> bool:
    """Whether a hook computes a weight from others, as weight_norm, spectral_norm and prune do."""
    return type(hook).__module__.startswith("torch.nn.utils.")


def _input_of(layer: nn.Module) -> Tensor | None:
    """Returns zeros in the shape of one input of a layer, None if it is not known."""
    like = next(layer.parameters())
    if isinstance(layer, nn.Linear):
        return like.new_zeros(1, layer.in_features)
    if isinstance(layer, CONVOLUTIONS):
        extents = zip(layer.kernel_size, layer.dilation, strict=True)
        sizes = [dilation * (size - 1) + 1 for size, dilation in extents]
        return like.new_zeros(1, layer.in_channels, *sizes)
    return None


def _check_adapters(model: nn.Module, names: Collection[str]) -> None:
    """Raises for layers that add a product of small matrices to their weight, each by a use of its own."""
    parameters = {id(p): name for name, p in model.named_parameters()}
    for layer in model.modules():
        if not _is_adapted(layer):
            continue
        for p in layer.parameters():
            name = parameters.get(id(p), "")
            if name in names:
                raise ValueError(
                    f"`{name}` is not the weight that its layer computes with: {type(layer).__name__} adds the product of its "
                    "adapter to it, and the sum has no zeros: merge the adapter into the weight first, or leave both "
                    "out with `exclude`."
                )


def _is_adapted(layer: nn.Module) -> bool:
    own = {*layer._parameters, *layer._modules} if not _is_script(layer) else set()
    has_factors = any(name.lower().startswith("lora_a") for name in own)
    return has_factors or ("base_layer" in own and hasattr(layer, "adapter_layer_names"))


def _is_script(layer: nn.Module) -> bool:
    return isinstance(layer, torch.jit.ScriptModule)
