"""What a score is computed from, told from its arguments."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from lightning_fairprune._observe.needs import required_signals

__all__ = ["Kind", "Wanted", "kind_of", "scores_in", "takes_target"]

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
        checkpoints: Sequence[str | os.PathLike[str]] | None = (),
    ) -> Wanted:
        """Returns what a pass has to do."""
        kind, names = kind_of(score), ()
        if isinstance(checkpoints, str | os.PathLike):
            raise ValueError(f"`checkpoints` must be a list of files, got {str(checkpoints)!r}.")
        files = tuple(Path(path) for path in checkpoints or ())
        for path in files:
            if not path.is_file():
                raise ValueError(f"`checkpoints`: there is no file {str(path)!r}.")
        if kind == "dynamics":
            names = required_signals(score, num_epochs=max(1, len(files)))  # type: ignore[assignment]
        else:
            _check_arguments(score, 2 if kind == "model" else 1)
        if kind == "features":
            layer = _layer(model, layer)
        return cls(score, kind, names, layer or "", files)


def _check_arguments(score: Callable[..., Any], given: int) -> None:
    """Raises a ValueError where a score lacks arguments that only the end of a pass would ask for."""
    parameters = list(inspect.signature(score).parameters.values())[given:]
    missing = [
        p.name
        for p in parameters
        if p.default is p.empty
        and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        and (given == 2 or p.name != "target")
    ]
    if missing:
        raise ValueError(
            f"`score` {getattr(score, '__name__', repr(score))} also needs {', '.join(missing)}: give it "
            "with functools.partial."
        )


def scores_in(result: object) -> Tensor:
    """Returns what a score gave, without gradient, if it is a tensor of numbers."""
    if not isinstance(result, Tensor) or result.dtype == torch.bool or result.is_complex():
        found = result.dtype if isinstance(result, Tensor) else type(result).__name__
        raise ValueError(
            f"`score` must return a float or integer tensor with one value per sample, got {found}."
        )
    return result.detach()


def takes_target(score: Callable[..., Any]) -> bool:
    """Tells whether a score of features also wants the labels, and has not got them already."""
    given = score.keywords if isinstance(score, functools.partial) else {}
    return "target" in inspect.signature(score).parameters and "target" not in given


def kind_of(score: Callable[..., Any]) -> Kind:
    """Tells from the first argument of a score what it is computed from."""
    names = list(inspect.signature(score).parameters)
    if names[:1] == ["features"]:
        return "features"
    return "model" if names[:1] == ["model"] else "dynamics"


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
