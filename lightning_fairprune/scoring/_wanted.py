"""What a score is computed from, told from its arguments."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from lightning_fairprune._probe import required_signals

__all__ = ["Kind", "Wanted", "kind_of"]

Kind = Literal["dynamics", "model", "features"]


class Wanted(NamedTuple):
    """A score, and what it takes to compute it, checked before anything is run."""

    score: Callable[..., Tensor]
    kind: Kind
    names: tuple[str, ...]
    layer: str
    checkpoints: tuple[Path, ...]

    @classmethod
    def of(
        cls,
        model: nn.Module,
        score: Callable[..., Tensor],
        layer: str | None = None,
        checkpoints: Sequence[str | os.PathLike[str]] = (),
    ) -> Wanted:
        """Returns what a pass has to do."""
        kind, names = kind_of(score), ()
        files = tuple(Path(path) for path in checkpoints)
        for path in files:
            if not path.is_file():
                raise ValueError(f"`checkpoints`: there is no file {str(path)!r}.")
        if kind == "dynamics":
            names = required_signals(score, num_epochs=max(1, len(files)))  # type: ignore[assignment]
        if kind == "features":
            layer = _layer(model, layer)
        return cls(score, kind, names, layer or "", files)


def kind_of(score: Callable[..., Any]) -> Kind:
    """Tells from the first argument of a score what it is computed from."""
    names = list(inspect.signature(score).parameters)
    if names[:1] == ["features"]:
        return "features"
    return "model" if names[:2] == ["model", "batches"] else "dynamics"


def _layer(model: nn.Module, layer: str | None) -> str:
    modules = dict(model.named_modules())
    if layer is None:
        linear = [str(name) for name, module in modules.items() if isinstance(module, nn.Linear)]
        if not linear:
            raise ValueError(
                f"{type(model).__name__} must have a linear layer whose input are the features: name "
                "another layer in `layer`."
            )
        return linear[-1]
    if layer not in modules:
        raise ValueError(
            f"`layer` must be one of {', '.join(filter(None, modules))}, got {layer!r}."
        )
    return layer
