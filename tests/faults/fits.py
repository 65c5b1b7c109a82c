"""A fit under a setting of the Trainer: with the callback, or without it and with the batches of another fit."""

from __future__ import annotations

import copy
import logging
import warnings
from dataclasses import dataclass, field
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from clock import Clock
from faults.design import Setting
from faults.student import Data, Diary, Loaders, Student
from lightning.pytorch import callbacks as known
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

import lightning_fairprune as lfp

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
torch.set_num_threads(1)

WARMUP = {"drop": 2, "random": 1, "hard": 2, "fraction": 0.25}


@dataclass
class Fit:
    """A fit that has ended."""

    diary: Diary
    final: dict[str, Any]
    told: list[str] = field(default_factory=list)
    error: BaseException | None = None


# ---------------------------------------------------------------------------- the Trainer of a setting


class _Stop(pl.Callback):
    """Wants to stop from the first epoch on, which `min_epochs` and `min_steps` prevent."""

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        trainer.should_stop = True


class _Notes(pl.Callback):
    """Notes that training has begun, which tuners do without it, and what other callbacks can monitor."""

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        module.diary.note("begun")

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        found = {name: value.item() for name, value in sorted(trainer.callback_metrics.items())}
        module.diary.note("metrics", trainer.current_epoch, found)


class _Replay(pl.Callback):
    """Does what the callback did besides choosing samples: other lengths of epochs, and a restart."""

    def __init__(self, script: Diary, *, restarts: bool) -> None:
        self._script, self._restarts = script, restarts
        self._users_reload: int | None = None
        self._start: list[Any] = []

    def on_train_start(self, trainer: Any, module: Any) -> None:
        self._start = [copy.deepcopy(it.state_dict()) for it in self._stateful(trainer, module)]

    def _stateful(self, trainer: Any, module: Any) -> list[Any]:
        averages = [getattr(callback, "_average_model", None) for callback in trainer.callbacks]
        weights = [module, *(average for average in averages if average is not None)]
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        return weights if self._script.planned else [*weights, *trainer.optimizers, *schedulers]

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        epochs, done = self._script.epochs, len(module.diary.epochs)
        if done < len(epochs) and epochs[done].pruned and not epochs[done - 1].pruned:
            self._users_reload = trainer.reload_dataloaders_every_n_epochs
            self._last = getattr(trainer, "_last_val_time", None)
            trainer.reload_dataloaders_every_n_epochs = 1
            trainer.fit_loop._combined_loader.flattened[0].measure()

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        if self._users_reload is None:
            return
        if self._users_reload == 0 and self._last is not None:
            trainer._last_val_time = self._last  # the loading of other batches is no validation
        trainer.reload_dataloaders_every_n_epochs, self._users_reload = self._users_reload, None
        if self._restarts:
            for it, state in zip(self._stateful(trainer, module), self._start, strict=True):
                it.load_state_dict(copy.deepcopy(state))
            if self._script.planned:
                trainer.strategy.setup_optimizers(trainer)
            for callback in trainer.callbacks:
                _forget(callback)


def _forget(callback: Any) -> None:
    """Forgets what a callback thought best, which is as a score that any other beats."""
    worst = torch.tensor(torch.inf)
    if isinstance(callback, known.EarlyStopping):
        callback.best_score, callback.wait_count = worst, 0
    if isinstance(callback, known.ModelCheckpoint) and callback.monitor is not None:
        callback.best_k_models = dict.fromkeys(callback.best_k_models, worst)
        callback.kth_value = worst
        callback.best_model_path, callback.best_model_score = "", None
        callback.current_score = None


def _length(setting: Setting) -> dict[str, Any]:
    steps = {"1": 26, "3": 10, "scheduler": 12}[setting["accumulate"]]
    steps = {"two by hand": 52, "accumulated by hand": 13, "lbfgs": 26}.get(
        setting["optimisation"], steps
    )
    return {
        "epochs": {"max_epochs": 5},
        "epochs, steps": {"max_epochs": 9, "max_steps": steps},
        "steps": {"max_epochs": -1, "max_steps": steps},
        "time": {"max_epochs": 9, "max_time": {"seconds": 26}},
        "min epochs": {"max_epochs": 6, "min_epochs": 4},
        "min steps": {"max_epochs": 6, "min_steps": steps - 2},
    }[setting["length"]]


def _validation(setting: Setting) -> dict[str, Any]:
    return {
        "epoch": {},
        "2 epochs": {"check_val_every_n_epoch": 2},
        "half": {"val_check_interval": 0.5},
        "3": {"val_check_interval": 3},
        "5 across": {"val_check_interval": 5, "check_val_every_n_epoch": None},
        "clock": {"val_check_interval": timedelta(seconds=5)},
        "clock across": {"val_check_interval": "00:00:00:07", "check_val_every_n_epoch": None},
    }[setting["val every"]]


def _number(level: str) -> int | float:
    return 1.0 if level == "all" else float(level) if "." in level else int(level)


def _callbacks(setting: Setting, folder: Path) -> list[pl.Callback]:
    kept, restarts = folder / "checkpoints", setting["after"] == "restart"
    # Without the callback WeightPruning plans for epochs of full length, of small batches if they are looked for.
    first, last = 3 if restarts else 1, 1 if setting["tuner"] == "batch size" else 3
    last = max(first, last)
    found: dict[str, dict[str, Any]] = {
        "accumulate": {
            "scheduler": lambda: known.GradientAccumulationScheduler({0: 2, 2: 3}),
        },
        "weights": {
            "ema": lambda: known.EMAWeightAveraging(decay=0.9),
            "average": lambda: known.WeightAveraging(),
            "swa": lambda: known.StochasticWeightAveraging(0.01, 4 if restarts else 3, 1),
            "finetuning": lambda: known.BackboneFinetuning(3 if restarts else 1, verbose=False),
        },
        "tuner": {
            "rate": lambda: known.LearningRateFinder(
                num_training_steps=14, early_stop_threshold=None
            ),
            "batch size": lambda: known.BatchSizeFinder(
                steps_per_trial=2, init_val=4, max_trials=1
            ),
        },
        "callback": {
            "early stopping": lambda: known.EarlyStopping(
                "val_loss", min_delta=10, patience=4, check_on_train_epoch_end=False
            ),
            "best": lambda: known.ModelCheckpoint(
                kept, monitor="val_loss", save_top_k=2, save_last=True
            ),
            "every step": lambda: known.ModelCheckpoint(kept, every_n_train_steps=3, save_top_k=-1),
            "by the clock": lambda: known.ModelCheckpoint(
                kept, train_time_interval=timedelta(seconds=5), save_top_k=-1
            ),
        },
        "length": {"min epochs": _Stop, "min steps": _Stop},
        "others": {
            "recalls": lambda: lfp.RecallMonitor(figures=False),
            "weights of classes": lambda: lfp.ClassWeighting(),
            "pruned weights": lambda: lfp.WeightPruning(sparsity=0.5, start=first, end=last),
        },
        "logger": {"two and rates": lambda: known.LearningRateMonitor()},
    }
    made = [levels[setting[name]]() for name, levels in found.items() if setting[name] in levels]
    return [*made, _Notes()]


def _loggers(setting: Setting, folder: Path, diary: Diary) -> list[Logger]:
    other = TensorBoardLogger if find_spec("tensorboard") else CSVLogger
    kinds = {"csv": [CSVLogger], "tensorboard": [other], "two and rates": [CSVLogger, other]}
    chosen = kinds.get(setting["logger"], [])
    made: list[Any] = [kind(folder / f"logger{i}") for i, kind in enumerate(chosen)]
    for logger in made:
        _note_rows(logger, diary)
    return made


def _note_rows(logger: Any, diary: Diary) -> None:
    log = logger.log_metrics

    def log_metrics(metrics: Any, step: Any = None) -> None:
        rows = {name: float(value) for name, value in sorted(metrics.items())}
        diary.note("row", type(logger).__name__, step, rows)
        log(metrics, step)

    logger.log_metrics = log_metrics


def _pruning(setting: Setting) -> lfp.DataPruning:
    prune = setting["prune"]
    more: dict[str, Any] = {"quota": None} if prune == "random" else {}
    if prune == "hard":
        more = {"score": lfp.scores.el2n, "keep": "hard", "update_every": 1}
    return lfp.DataPruning(0.39, WARMUP[prune], after=setting["after"], **more)


def fit(setting: Setting, folder: Path, script: Diary | None = None) -> Fit:
    """Runs a setting with the callback, or without it and the batches of a script."""
    clock = Clock()
    diary = Diary(clock)
    torch.manual_seed(0)
    loaders = Loaders(diary, script)
    module: Any = Student(setting, diary, script)
    data = Data(loaders)
    ours = _pruning(setting) if script is None else None
    first = ours or _Replay(script, restarts=setting["after"] == "restart")  # type: ignore[arg-type]
    others = _callbacks(setting, folder)
    chain = [first, *others] if setting["place"] == "first" else [*others, first]
    given: dict[str, Any] = {"datamodule": data}
    if setting["data"] == "wrapper" and ours is not None:
        given = {"datamodule": lfp.FairPruneDataModule(data)}
    if setting["data"] == "loaders":
        given = {"train_dataloaders": loaders.train(8), "val_dataloaders": loaders.val()}
    if setting["data"] == "module":
        given, module.batch_size = {}, 8
        module.train_dataloader = lambda: loaders.train(module.batch_size)
        module.val_dataloader = loaders.val
    ended = Fit(diary, {})
    with clock, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        trainer = _trainer(setting, folder, chain, _loggers(setting, folder, diary))
        try:
            trainer.fit(module, **given)
            ended.final = final_state(trainer, module, folder)
        except (Exception, SystemExit) as error:
            ended.error = error
    ended.told = [str(warning.message) for warning in told]
    return ended


def _trainer(
    setting: Setting, folder: Path, chain: list[pl.Callback], loggers: list[Logger]
) -> pl.Trainer:
    kinds = known.Timer, known.ModelCheckpoint
    accumulate, clip = setting["accumulate"], setting["clip"]
    return pl.Trainer(
        accelerator="cpu",
        devices=2 if setting["strategy"] == "ddp" else 1,
        strategy="ddp" if setting["strategy"] == "ddp" else "auto",
        callbacks=chain,
        logger=loggers or False,
        default_root_dir=folder,
        enable_checkpointing=any(isinstance(callback, kinds[1]) for callback in chain),
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=2,
        limit_train_batches=_number(setting["train limit"]),
        limit_val_batches=_number(setting["val limit"]),
        num_sanity_val_steps=int(setting["sanity"]),
        accumulate_grad_batches=1 if accumulate == "scheduler" else int(accumulate),
        gradient_clip_val=None if clip == "none" else 0.1,
        gradient_clip_algorithm=None if clip == "none" else clip,
        precision=setting["precision"],  # type: ignore[arg-type]
        reload_dataloaders_every_n_epochs=int(setting["reload"]),
        **_length(setting),
        **_validation(setting),
    )


def final_state(trainer: pl.Trainer, module: Any, folder: Path) -> dict[str, Any]:
    """Returns what a fit leaves behind: weights, states, checkpoints, tables."""
    # Another rank would read files that this one is about to write.
    saved = sorted(folder.rglob("*.ckpt")) if trainer.is_global_zero else []
    tables = folder.rglob("metrics.csv") if trainer.is_global_zero else ()
    files = {str(path.relative_to(folder)): torch.load(path, weights_only=False) for path in saved}
    wanted = ("epoch", "global_step", "state_dict", "optimizer_states", "lr_schedulers", "loops")
    rows = {str(it.relative_to(folder)): it.read_text() for it in tables}
    return {
        "weights": module.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
        "schedules": [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
        "rank": trainer.global_rank,
        "global_step": trainer.global_step,
        "epoch": trainer.current_epoch,
        "reload": trainer.reload_dataloaders_every_n_epochs,
        "metrics": dict(trainer.callback_metrics),
        "checkpoints": {
            name: {key: value for key, value in file.items() if key in wanted}
            for name, file in files.items()
        },
        "rows": rows,
    }
