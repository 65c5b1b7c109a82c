"""The folder of a run, and loggers that show figures."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from lightning_fairprune._files import RUN_FOLDER
from lightning_fairprune._lightning.kinds import lightning_class


def run_folder(trainer: pl.Trainer) -> Path | None:
    """Returns our subfolder in the folder of the first logger that has one; None without any.

    For rank 0 only: other ranks do not know the version of a logger.
    """
    for logger in trainer.loggers:
        folder = getattr(logger, "log_dir", None)
        if not isinstance(folder, str | os.PathLike) and logger.save_dir is not None:
            # Loggers of services have one folder for all runs; the version distinguishes them.
            folder = Path(logger.save_dir, str(logger.name), str(logger.version))
        if folder is not None:
            return Path(folder) / RUN_FOLDER
    return None


@rank_zero_only
def say_where(trainer: pl.Trainer, name: str, *results: str) -> None:
    """Warns at the end of a fit in processes that do not hand back the callback (ddp_spawn, ddp_notebook)."""
    launcher = getattr(trainer.strategy, "launcher", None)
    if lightning_class(launcher, "_MultiProcessingLauncher") is None:
        return
    folder = run_folder(trainer)
    files = "no logger has a folder for them" if folder is None else f"files in {str(folder)!r}"
    rank_zero_warn(
        f"{name} has its results in the processes that {type(trainer.strategy).__name__} started for the fit, and they "
        f"end with it: where trainer.fit() was called, {', '.join(f'`{result}`' for result in results)} stay as they "
        f"were before. What remains is in the checkpoints, and {files}. With strategy='ddp' the callback has them, too."
    )


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def takes_figures(trainer: pl.Trainer) -> bool:
    """Whether any logger shows figures, and matplotlib is installed."""
    return can_draw() and any(map(_sender, trainer.loggers))


def send_figure(trainer: pl.Trainer, name: str, figure: Any) -> None:
    """Sends a matplotlib figure to every logger that shows figures."""
    for logger in trainer.loggers:
        send = _sender(logger)
        if send is not None:
            send(name, figure, trainer.global_step)


def _sender(logger: Any) -> Any:
    """Returns the function that sends a figure to a logger such as TensorBoard or W&B, if there is one."""
    if hasattr(logger, "log_image"):
        return lambda name, figure, step: logger.log_image(name, images=[figure], step=step)
    if hasattr(logger.experiment, "add_figure"):
        return lambda name, figure, step: logger.experiment.add_figure(name, figure, step)
    return None
