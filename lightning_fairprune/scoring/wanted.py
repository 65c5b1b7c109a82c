"""What a score is computed from, according to its arguments."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from lightning_fairprune import signals
from lightning_fairprune._observe.needs import required_signals
from lightning_fairprune.records.dynamics import Dynamics
from lightning_fairprune.records.settings import called

__all__ = ["Kind", "Wanted", "kind_of", "layer_of", "scores_in", "takes_target"]

Kind = Literal["dynamics", "model", "features"]


class Wanted(NamedTuple):
    """A score and what it needs, checked before anything runs."""

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
        """Returns the checked request."""
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
            layer = layer_of(model, layer)
        return cls(score, kind, names, layer or "", files)


def _check_arguments(score: Callable[..., Any], given: int) -> None:
    """Raises for arguments that a score lacks, before the pass and not at its end."""
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
            f"`score` {called(score)} also needs {', '.join(missing)}: give it "
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
    """Returns what a score is computed from: what its first parameter is annotated with.

    `Dynamics`, or no annotation: training dynamics. A `Tensor`: features [N, D]. An `nn.Module`: the model, with
    batches as the second argument. A signal, or any other annotation, raises ValueError.
    """
    inner = score.func if isinstance(score, functools.partial) else score
    name = called(inner)
    if getattr(inner, "__module__", None) == signals.__name__:
        same = {"p_true": "confidence", "correct": "forgetting", "rival": "margin"}.get(name, name)
        raise ValueError(
            f"`score` must be computed from the whole warm-up, but signals.{name} is the value of one batch: "
            f"pass lightning_fairprune.scores.{same}."
        )
    first = next(iter(_parameters(score)), None)
    kind: Any = Any if first is None or first.annotation is first.empty else first.annotation
    if kind is Any or kind is Dynamics:
        return "dynamics"
    if inspect.isclass(kind) and issubclass(kind, nn.Module):
        return "model"
    if inspect.isclass(kind) and issubclass(kind, Tensor):
        return "features"
    raise ValueError(
        f"`score` {name} must take a Dynamics, a Tensor of features or an nn.Module first, got a parameter "
        f"{str(first)!r}: change its annotation, or leave it out for a Dynamics."
    )


def _parameters(score: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(score, eval_str=True).parameters.values())
    except NameError:  # imported for type checkers only
        known = {"Dynamics": Dynamics, "Tensor": Tensor, "Module": nn.Module}
        found = list(inspect.signature(score).parameters.values())
        return [
            p.replace(annotation=known.get(str(p.annotation).split(".")[-1], Any)) for p in found
        ]


def layer_of(model: nn.Module, layer: str | None) -> str:
    """Returns the name of the layer whose input are the features: the last linear one by default."""
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
