"""Query models whose weights come from files."""

from __future__ import annotations

import copy
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
    weights = _read_weights(source)
    own = {name: _copy(value) for name, value in model.state_dict().items()}
    try:
        try:  # what fits is loaded even if something else does not
            model.load_state_dict(weights, strict=getattr(model, "strict_loading", True))
        except RuntimeError as error:
            raise ValueError(
                f"`checkpoints`: the weights in {str(source)!r} must fit the model: {error}"
            ) from error
        yield
    finally:
        model.load_state_dict(own, strict=False)


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)


def _read_weights(path: Path) -> Mapping[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"`checkpoints`: {str(path)!r} must load with weights_only=True: "
            f"{str(error).split('. ')[0]}. If you trust the file, save its 'state_dict' alone."
        ) from error
    weights = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(weights, Mapping):
        raise ValueError(
            f"`checkpoints`: {str(path)!r} must hold weights by name, got {type(weights).__name__}."
        )
    return weights
