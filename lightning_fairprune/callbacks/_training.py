"""Which training the records of a fit are of: a name that a fit is given at its start, and keeps when resumed."""

from __future__ import annotations

import secrets
import time
import warnings
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from lightning_fairprune.callbacks._run_folder import run_folder
from lightning_fairprune.records.offsets_record import OffsetsRecord
from lightning_fairprune.records.pruning_record import PruningRecord
from lightning_fairprune.records.recall_history import RecallHistory
from lightning_fairprune.records.sparsity_record import SparsityRecord

_RECORDS: dict[str, Any] = {
    "recalls.safetensors": RecallHistory,
    "pruning.safetensors": PruningRecord,
    "sparsity.json": SparsityRecord,
    "offsets.json": OffsetsRecord,
}
_KEY = "lightning_fairprune.training"  # in checkpoints
_NAMES: WeakKeyDictionary[Any, str] = WeakKeyDictionary()  # of a Trainer's fit
_CHECKED: WeakKeyDictionary[Any, str] = WeakKeyDictionary()


def forget_training(trainer: pl.Trainer) -> None:
    """Begins another training, unless the Trainer continues one."""
    if trainer.current_epoch == 0:
        _NAMES.pop(trainer, None)
        _CHECKED.pop(trainer, None)


def name_training(trainer: pl.Trainer) -> None:
    """Names the training, for all callbacks of the Trainer, unless a checkpoint or another callback did.

    The day and a random number, neither host nor user; drawn from the operating system, so that no seed changes.
    """
    name = _NAMES.get(trainer)
    if name is None:
        name = f"{time.strftime('%Y%m%d', time.gmtime())}-{secrets.token_hex(4)}"
        _NAMES[trainer] = name
    if _CHECKED.get(trainer) != name:
        _CHECKED[trainer] = name
        _warn_of_others(trainer, name)


def training_of(trainer: pl.Trainer) -> str | None:
    """Returns the name of the training; None before it starts."""
    return _NAMES.get(trainer)


class OfTraining(pl.Callback):
    """A callback whose checkpoints say which training they are of: a resumed training is the same one."""

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Saves which training this is."""
        if (name := _NAMES.get(trainer)) is not None:
            checkpoint[_KEY] = name

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Continues the training of the checkpoint; those of earlier releases name none."""
        if isinstance(name := checkpoint.get(_KEY), str):
            _NAMES[trainer] = name


@rank_zero_only
def _warn_of_others(trainer: pl.Trainer, name: str) -> None:
    """Warns of records of another training in the folder of the logger."""
    folder = run_folder(trainer)
    if folder is None:
        return
    others = {
        file: found for file in _RECORDS if (found := _of_record(folder / file)) not in (None, name)
    }
    if others:
        listed = ", ".join(f"{file} ({found or 'unknown'})" for file, found in others.items())
        rank_zero_warn(
            f"{str(folder)!r} has records of another training than this one ({name}): {listed}. Records of "
            "this training replace theirs, and those that it does not write stay: give the logger another "
            "version or name, or move the folder."
        )


def _of_record(file: Path) -> str | None:
    """Returns the name of the training of a record, "" if it has none, None without the file."""
    if not file.is_file():
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return str(_RECORDS[file.name].load(file).training or "")
        except (OSError, ValueError):
            return ""
