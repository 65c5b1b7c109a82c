"""Query models whose weights come from files."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lightning_fairprune._files import read_checkpoint

__all__ = ["misfit", "weights_of"]


@contextmanager
def weights_of(model: nn.Module, source: Path | None) -> Iterator[None]:
    """Puts the weights of a checkpoint in, and the model's own back."""
    if source is None:
        yield
        return
    weights = _read_weights(source)
    own = {name: _copy(value) for name, value in model.state_dict().items()}
    try:
        try:  # what fits is loaded even if something else does not
            model.load_state_dict(weights, strict=getattr(model, "strict_loading", True))
        except RuntimeError as error:
            raise ValueError(
                f"`checkpoints`: the weights in {str(source)!r} must fit the model: "
                f"{misfit(model, weights, error)}."
            ) from error
        yield
    finally:
        model.load_state_dict(own, strict=False)


def misfit(model: nn.Module, weights: Mapping[str, Any], error: Exception) -> str:
    """Returns in a few words why weights do not fit a model, which said so at more length."""
    own = model.state_dict()
    for name, value in weights.items():
        here, there = (list(getattr(v, "shape", [])) for v in (own.get(name), value))
        if name in own and here != there:
            return (
                f"{name} is {there} there and {here} in the model; give a checkpoint of this model"
            )
    for names, what in ((own.keys() - weights, "has no"), (weights.keys() - own, "also has")):
        if names:
            first = min(names, key=[*own, *weights].index)
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            return f"it {what} {first}{more}; give a checkpoint of this model"
    return " ".join(str(error).split())


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)


def _read_weights(path: Path) -> Mapping[str, Any]:
    try:
        content = read_checkpoint(path)
    except ValueError as error:
        raise ValueError(
            f"`checkpoints`: {error}. If you trust the file, save its 'state_dict' alone."
        ) from error
    weights = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(weights, Mapping):
        raise ValueError(
            f"`checkpoints`: {str(path)!r} must hold weights by name, got {type(weights).__name__}: "
            "save the model's state_dict()."
        )
    return weights
