"""What users may get wrong, and the sentence that each of them should read.

A sentence has three parts: what must hold, what was found, what to do next. Where the first says all
about the third ("`density` must be in (0, 1]"), there is no third.

    python tests/bad_inputs

prints all of them.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import users

import lightning_fairprune as lfp
from lightning_fairprune import cli

steps = 0
"""Training steps since `forget`: bad input should cost none."""


@dataclass(frozen=True)
class Bad:
    """One bad input.

    Args:
        name: what is wrong, in words.
        do: gives it to the library; called with an empty folder.
        error: what is raised; SystemExit for a command.
        must: what must hold, as a pattern of a part of the sentence.
        found: what was found, the same.
        then: what to do next, the same; "" where the first part says it.
        given: puts files into the folder first, which must stay as they are.
        steps: training steps that it may cost, where nothing can be known before.
    """

    name: str
    do: Callable[[Path], object]
    error: type[BaseException]
    must: str
    found: str
    then: str = ""
    given: Callable[[Path], object] = lambda at: None
    steps: int = 0


def fit(
    *callbacks: pl.Callback,
    model: pl.LightningModule | None = None,
    data: Any = None,
    ckpt_path: Any = None,
    **trainer: Any,
) -> pl.Trainer:
    """Trains with a small model on small data, unless told otherwise."""
    fitting = users.trainer(callbacks=[*callbacks, CountSteps()], **trainer)
    model = users.Model() if model is None else model
    fitting.fit(model, datamodule=users.Data() if data is None else data, ckpt_path=ckpt_path)
    return fitting


def prune(
    *, model: pl.LightningModule | None = None, data: Any = None, trainer: Any = (), **options: Any
) -> lfp.DataPruning:
    """Trains with DataPruning."""
    callback = lfp.DataPruning(**({"density": 0.4, "warmup_epochs": 2} | options))
    fit(callback, model=model, data=data, **dict(trainer))
    return callback


class CountSteps(pl.Callback):
    """Counts."""

    def on_train_batch_end(self, *_: Any) -> None:
        global steps
        steps += 1


def forget() -> None:
    """Sets the count of steps back to zero."""
    global steps
    steps = 0


def command(*arguments: object, at: Path | None = None) -> None:
    """Runs ``fairprune`` and raises a SystemExit with the last paragraph that it writes."""
    told, before = io.StringIO(), os.getcwd()
    try:
        os.chdir(before if at is None else at)
        with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
            code = cli.main([str(argument) for argument in arguments])
    except SystemExit as exit:
        code = exit.code
    finally:
        os.chdir(before)
    if code:
        _, _, last = told.getvalue().rpartition("error: ")
        raise SystemExit(" ".join(last.split()))


def rows() -> list[Bad]:
    """Returns all bad inputs."""
    from bad_inputs import arguments, checkpoints, data, files, metrics, tables, weights

    modules = (arguments, data, checkpoints, files, tables, weights, metrics)
    return [row for module in modules for row in module.ROWS]
