"""Finds the signals that a score needs by trying it on a few made-up samples."""

from __future__ import annotations

import functools
import itertools
from collections import UserDict
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lightning_fairprune import signals
from lightning_fairprune._observe.moves import MOVE, log_p, moved
from lightning_fairprune.records.dynamics import Dynamics

_NUM_SAMPLES = 16
_NUM_CLASSES = 4


def required_signals(score: Callable[[Dynamics], Tensor], *, num_epochs: int) -> tuple[str, ...]:
    """Returns the signals that a score reads, names of `signals.__all__` or `move`, in the order of first use.

    Runs the score once on 16 made-up samples with `num_epochs` recorded epochs of every signal. So a
    recorder keeps only what is needed, and a score that cannot work fails before training.

    Raises:
        ValueError: If the score fails on the made-up samples, or does not return one number per sample.

    Example:
        >>> from lightning_fairprune import scores
        >>> required_signals(scores.forgetting, num_epochs=5)
        ('correct',)
        >>> required_signals(lambda seen: seen.signal("loss")[-1], num_epochs=5)
        ('loss',)
    """
    if num_epochs < 1:
        raise ValueError(f"`num_epochs` must be at least 1, got {num_epochs}.")
    dynamics = _made_up(num_epochs)
    recording = _Recording(dynamics.signals, _made_up_moves(num_epochs))
    object.__setattr__(dynamics, "signals", recording)
    try:
        with torch.no_grad():
            result = score(dynamics)
    except Exception as error:
        raise ValueError(
            f"`score` {_name(score)} fails on {num_epochs} made-up epochs of {_NUM_SAMPLES} samples: "
            f"{type(error).__name__}: {error}. A score is called with a Dynamics, unless its first parameter "
            "is annotated as a Tensor (features) or an nn.Module (the model)."
        ) from error
    _check(score, result)
    return tuple(recording.read)


def _made_up(num_epochs: int) -> Dynamics:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(num_epochs * _NUM_SAMPLES, _NUM_CLASSES, generator=generator)
    target = torch.arange(_NUM_SAMPLES) % _NUM_CLASSES
    values = signals.compute(signals.__all__, logits, target.repeat(num_epochs))
    return Dynamics(
        target=target,
        signals={name: value.view(num_epochs, -1) for name, value in values.items()},
        group=target % 2,
    )


def _made_up_moves(num_epochs: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = num_epochs + 1, _NUM_SAMPLES, _NUM_CLASSES
    p = log_p(torch.randn(shape, generator=generator).flatten(0, 1)).view(shape)
    return torch.stack([moved(before, now) for before, now in itertools.pairwise(p)])


def _check(score: Callable[[Dynamics], Tensor], result: object) -> None:
    if isinstance(result, Tensor):
        found = f"{result.dtype} of shape {list(result.shape)}"
        numbers = result.dtype != torch.bool and not result.is_complex()
        if numbers and result.shape == (_NUM_SAMPLES,):
            return
    else:
        found = type(result).__name__
    raise ValueError(
        f"`score` {_name(score)} must return a float or integer tensor with one value per sample, "
        f"got {found} for {_NUM_SAMPLES} samples."
    )


def _name(score: object) -> str:
    if isinstance(score, functools.partial):
        return _name(score.func)
    return str(getattr(score, "__qualname__", type(score).__qualname__))


class _Recording(UserDict[str, Tensor]):
    """A dictionary that records the order in which its values are read.

    It does not list `moves`, which take much memory: a score that reads everything does not need them.
    """

    def __init__(self, values: Mapping[str, Tensor], moves: Tensor) -> None:
        super().__init__(values)
        self._moves = moves
        self.read: dict[str, None] = {}

    def __contains__(self, name: object) -> bool:
        return name == MOVE or name in self.data

    def __getitem__(self, name: str) -> Tensor:
        value = self._moves if name == MOVE else self.data[name]
        self.read[name] = None
        return value
