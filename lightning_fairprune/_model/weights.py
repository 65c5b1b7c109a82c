"""Weights that come from files."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lightning_fairprune._files import read_checkpoint
from lightning_fairprune._model.borrowed import State


@contextmanager
def weights_of(model: nn.Module, source: Path | None, own: State) -> Iterator[None]:
    """Puts the weights of a checkpoint into a borrowed model, and `own` back."""
    if source is None:
        yield
        return
    weights = _read(source)
    # What a module keeps elsewhere, and torch saves under such names.
    extra = {k: v for k, v in own_weights(model).items() if k.endswith("_extra_state")}
    try:
        strict = getattr(model, "strict_loading", True)
        put_in(model, weights, "checkpoints", source, strict=strict)
        yield
    finally:
        own.put_back()
        model.eval()
        model.load_state_dict(extra, strict=False)


def put_in(
    model: nn.Module,
    weights: Mapping[str, Any],
    argument: str,
    source: object,
    *,
    strict: bool = True,
) -> None:
    """Loads weights into a model; raises a ValueError if some do not fit, after loading the others."""
    try:
        model.load_state_dict(weights, strict=strict)
    except RuntimeError as error:
        raise ValueError(
            f"`{argument}`: the weights in {str(source)!r} must fit the model: "
            f"{_misfit(model, weights, error)}."
        ) from error


def own_weights(model: nn.Module) -> dict[str, Any]:
    """Returns copies of what a model saves, to be loaded into it again."""
    return {
        name: value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)
        for name, value in model.state_dict().items()
    }


def _misfit(model: nn.Module, weights: Mapping[str, Any], error: Exception) -> str:
    """Returns in a few words why weights do not fit a model, shorter than torch's error."""
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


def _read(path: Path) -> Mapping[str, Any]:
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
