"""Query models whose weights come from files."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["weights_of"]


@contextmanager
def weights_of(model: nn.Module, source: Path | None) -> Iterator[None]:
    """Puts the weights of a checkpoint in, and the model's own back."""
    if source is None:
        yield
        return
    own = {name: value.clone() for name, value in _tensors(model.state_dict()).items()}
    try:
        model.load_state_dict(_read_weights(source))
    except RuntimeError as error:
        raise ValueError(
            f"`checkpoints`: the weights in {str(source)!r} must fit the model: {error}"
        ) from error
    try:
        yield
    finally:
        model.load_state_dict(own, strict=False)


def _tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def _read_weights(path: Path) -> Mapping[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"`checkpoints`: {str(path)!r} must load with weights_only=True; "
            f"{str(error).splitlines()[0]}"
        ) from error
    weights = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(weights, Mapping):
        raise ValueError(
            f"`checkpoints`: {str(path)!r} must hold weights by name, got {type(weights).__name__}."
        )
    return weights
