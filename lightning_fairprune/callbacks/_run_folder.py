"""The folder of a run, and loggers that show figures."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from lightning_fairprune._files import RUN_FOLDER


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
