"""The parameters of a network that are multiplied with activations."""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

CONVOLUTIONS = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d
)  # fmt: skip
_LAYERS = (nn.Linear, *CONVOLUTIONS)
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)
_RECURRENT_WEIGHT = re.compile(r"weight_(ih|hh|hr)(_l\d+(_reverse)?)?")
_PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
# Classes whose `weight` is looked up or scales, by a part of their name: many networks have their own.
_OTHER_CLASSES = re.compile(r"embed|norm", re.IGNORECASE)
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)


def layers_weight(name: str) -> bool:
    """Whether a name is that of the `weight` of a layer, not of a recurrent one or of attention."""
    return any(name == own or name.endswith(f".{own}") for own in _names_of("weight"))


def lookups_of(module: nn.Module) -> Iterator[nn.Parameter]:
    """Returns the parameters of which a module itself looks up rows."""
    return _originals(module, "weight") if isinstance(module, _EMBEDDINGS) else iter(())


def matrices_of(module: nn.Module) -> Iterator[nn.Parameter]:
    """Returns the parameters that a module itself multiplies with activations, as far as its class says."""
    if isinstance(module, _LAYERS):
        yield from _originals(module, "weight")
    elif isinstance(module, _RECURRENT):
        names = {name.removesuffix("_orig") for name, _ in module.named_parameters(recurse=False)}
        names |= set(getattr(module, "parametrizations", ()))
        for name in filter(_RECURRENT_WEIGHT.fullmatch, sorted(names)):
            yield from _originals(module, name)
    elif isinstance(module, nn.MultiheadAttention):
        for name in _PROJECTIONS:
            yield from _originals(module, name)
    elif not _OTHER_CLASSES.search(_classes(module)):
        yield from filter(is_matrix, _originals(module, "weight"))


def _classes(module: nn.Module) -> str:
    kinds = (kind.__name__ for kind in type(module).__mro__)
    return " ".join([*kinds, str(getattr(module, "original_name", ""))])  # of a scripted module


def is_matrix(tensor: Tensor) -> bool:
    """Whether a parameter has two axes or more that are longer than 1."""
    return is_lazy(tensor) or sum(size > 1 for size in tensor.shape) > 1


def _names_of(name: str) -> tuple[str, str, str]:
    # Its own, and those that `torch.nn.utils.prune` and `torch.nn.utils.parametrize` give it.
    return name, f"{name}_orig", f"parametrizations.{name}.original"


def _originals(module: nn.Module, name: str) -> Iterator[nn.Parameter]:
    """Returns the parameter of a name that a module has itself, or what it was replaced with."""
    own = dict(module.named_parameters(recurse=False))
    if name in getattr(module, "parametrizations", ()):
        own |= dict(module.named_parameters())
    return (own[known] for known in _names_of(name) if known in own)
