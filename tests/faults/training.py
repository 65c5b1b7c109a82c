"""The training that is broken and resumed, as a user would write it, and a diary of what it did."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import traceback
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import users
from faults import breaking
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from lightning.pytorch.strategies import DDPStrategy

import lightning_fairprune as lfp
from lightning_fairprune.history import RecallHistory
from lightning_fairprune.records.pruning_record import PruningRecord

N, EPOCHS, WARMUP, BATCHES, KEPT_BATCHES = 103, 4, 2, 11, 5
GROUP_SECONDS = 100  # what a user of several ranks waits at most for one that is gone

PRUNE: dict[str, dict[str, Any]] = {
    # Each has something to lose: quotas with a memory, dynamics, fresh draws, a copy of the weights.
    "scored": {"score": lfp.scores.el2n, "keep": "stratified", "quota": "minimax"},
    "random": {"quota": "drop"},
    "restart": {"quota": "minimax", "after": "restart"},
    "pass": {"score": lfp.gradients.grad_norm, "keep": "hard", "quota": "minimax"},
    "weights": {},
}
RHYTHM = {"density": 0.4, "warmup_epochs": WARMUP, "recall_window": 2}

POLICIES: dict[str, dict[str, Any]] = {
    "step": {"every_n_train_steps": 1, "save_on_train_epoch_end": False},
    "epoch": {"save_on_train_epoch_end": True},
    "validation": {"save_on_train_epoch_end": False},
    "exception": {"save_on_train_epoch_end": True},
    "both": {"every_n_train_steps": 1, "save_on_train_epoch_end": False},
    # Lightning removes files of the best that it has not written yet: all are kept.
    "async": {"every_n_train_steps": 1, "save_on_train_epoch_end": False, "save_top_k": -1},
    "top": {"monitor": "val/recall/worst", "mode": "max", "save_top_k": 2},
}
# What a user may change when resuming.
DEFAULTS: dict[str, Any] = {
    "batch": 10, "workers": None, "max_epochs": EPOCHS, "accumulate": 1, "density": 0.4
}  # fmt: skip


class Diary(Logger):
    """One line a fact, on disk at once, so that it outlives the process; also the logger."""

    def __init__(self, task: dict[str, Any], rank: int, breaker: breaking.Breaker) -> None:
        super().__init__()
        self.folder, self.attempt, self.breaker = task["folder"], task["attempt"], breaker
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        self._file = os.open(f"{self.folder}/diary.{rank}.jsonl", flags, 0o644)

    def note(self, what: str, key: Any = None, **facts: Any) -> None:
        line = {"attempt": self.attempt, "what": what, "key": key, "facts": facts}
        os.write(self._file, (json.dumps(line) + "\n").encode())

    name = "diary"
    version = 0

    @property
    def log_dir(self) -> str:
        return self.folder

    @property
    def save_dir(self) -> str:
        return self.folder

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if not pl.utilities.rank_zero_only.rank:
            self.breaker.log()
            for name, value in metrics.items():
                self.note("metric", [step, name], value=float(value))


class Blobs(users.Blobs):
    """Samples that can no longer be read, from some point on."""

    def __init__(self, n: int, seed: int, breaker: breaking.Breaker) -> None:
        super().__init__(n, seed)
        self.breaker = breaker

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        self.breaker.read()
        return super().__getitem__(i)


class Data(users.Data):
    def __init__(self, breaker: breaking.Breaker, **options: Any) -> None:
        super().__init__(N, **options)
        self.breaker = breaker

    def setup(self, stage: str) -> None:
        self.train, self.val = Blobs(N, 0, self.breaker), users.Blobs(60, seed=1)


class Model(users.Model):
    def __init__(self, breaker: breaking.Breaker) -> None:
        super().__init__()
        self.breaker = breaker

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.breaker.at(f"step {self.trainer.current_epoch}.{batch_idx}")
        loss = super().training_step(batch, batch_idx)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if self.trainer.validating:
            self.breaker.at(f"validation {self.trainer.current_epoch}.{batch_idx}")
        super().validation_step(batch, batch_idx)

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9)
        return [optimizer], [schedule]


class Notes(pl.Callback):
    """What the steps were given and what each epoch ended with; saves files as users do."""

    def __init__(self, diary: Diary, prune: lfp.DataPruning | None) -> None:
        self.diary, self.prune = diary, prune

    def on_train_start(self, trainer: Any, module: Any) -> None:
        # Another logging name than the facts that are compared: a resumed training begins elsewhere.
        self.diary.note("begin", epoch=trainer.current_epoch, step=trainer.global_step)

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        self.diary.breaker.at(f"epoch {trainer.current_epoch}")

    def on_train_batch_end(self, trainer: Any, module: Any, out: Any, batch: Any, i: int) -> None:
        samples = (batch[0][:, 0] * 1000).round().long().tolist()
        facts = {"samples": samples, "loss": float(out["loss"])}
        facts["batches"] = trainer.num_training_batches
        self.diary.note("batch", [trainer.current_epoch, i], **facts)
        self.diary.breaker.at(f"after step {trainer.current_epoch}.{i}")

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        self.diary.note("epoch", trainer.current_epoch, **self.state(module))
        self.diary.breaker.at(f"decided {trainer.current_epoch}")
        if self.prune is not None and trainer.is_global_zero:
            folder = Path(self.diary.folder, "saved")
            folder.mkdir(exist_ok=True)
            if self.prune.dynamics is not None:
                self.prune.dynamics.save(folder / "dynamics.safetensors")
            if self.prune.selection is not None:
                self.prune.selection.save(folder / "selection.safetensors")

    def state(self, module: Any) -> dict[str, Any]:
        digest = hashlib.sha256()
        for parameter in module.parameters():
            digest.update(parameter.detach().numpy().tobytes())
        facts: dict[str, Any] = {"weights": digest.hexdigest()}
        if self.prune is not None:
            facts |= {
                "kept": None
                if self.prune.selection is None
                else self.prune.selection.indices.tolist(),
                "quota": None if self.prune.quota is None else self.prune.quota.tolist(),
                "history": [
                    [h.epoch, None if h.recall is None else h.recall.tolist(), h.quota.tolist()]
                    for h in self.prune.history
                ],
            }
        return facts


class LastWords(pl.Callback):
    """ModelCheckpoint(save_on_exception=True), which older versions of Lightning do not know."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_exception(self, trainer: Any, *_: Any) -> None:
        trainer.save_checkpoint(self.path)


def files(folder: Path) -> dict[str, str]:
    """What each file that a run leaves says: whole, or why it cannot be read."""
    readers = {
        "fairprune/pruning.safetensors": PruningRecord.load,
        "fairprune/pruning.json": lambda path: json.loads(path.read_text()),
        "fairprune/recalls.safetensors": RecallHistory.load,
        "fairprune/recalls.json": RecallHistory.load,
        "saved/dynamics.safetensors": lfp.Dynamics.load,
        "saved/selection.safetensors": lfp.Selection.load,
        "fairprune/sparsity.json": lambda path: json.loads(path.read_text()),
    }
    found = {}
    for name, read in readers.items():
        if (folder / name).is_file():
            try:
                read(folder / name)
                found[name] = "whole"
            except Exception as error:
                found[name] = f"{type(error).__name__}: {error}"
    return found


def ended(folder: Path) -> dict[str, Any]:
    """What the files of a run say in the end."""
    record = folder / "fairprune" / "pruning.safetensors"
    facts: dict[str, Any] = {}
    if record.is_file():
        read = PruningRecord.load(record)
        facts["kept"], facts["settings"] = read.selection.indices.tolist(), dict(read.settings)
        facts["history"] = [[h.epoch, h.quota.tolist()] for h in read.history]
        facts["score"] = None if read.score is None else str(read.score.tolist())
    recalls = RecallHistory.load(folder / "fairprune")
    facts["recalls"] = [[*e[:4], e.counts.tp.tolist()] for e in recalls.evaluations]
    return facts


def fit(task: dict[str, Any], rank: int, ranks: int) -> None:
    """Trains once, from the newest checkpoint if there is one."""
    folder = Path(task["folder"])
    os.chdir(folder)
    breaker = breaking.Breaker(task.get("fault"), rank, str(folder))
    diary = Diary(task, rank, breaker)
    warnings.simplefilter("always")
    warnings.showwarning = lambda message, *_, **__: diary.note("said", text=str(message))
    if rank == 0:
        diary.note("files", found=files(folder))
    try:
        pl.seed_everything(1, verbose=False)
        settings = DEFAULTS | task.get("changed", {})
        options = RHYTHM | PRUNE[task["prune"]] | {"density": settings["density"]}
        if options.get("quota") == "minimax":
            options["quota"] = lfp.quotas.Minimax()
        elif "quota" in options:
            options["quota"] = lfp.quotas.drop
        if task["prune"] == "pass":
            options["score_on"] = lfp.ScorePass(resume="saved/pass.safetensors")
        pruner: Any
        if task["prune"] == "weights":
            pruner = lfp.WeightPruning(sparsity=0.5, start=1, end=3)
        else:
            pruner = lfp.DataPruning(**options)
        is_data = isinstance(pruner, lfp.DataPruning)
        notes = Notes(diary, pruner if is_data else None)
        keep = ModelCheckpoint(
            str(folder / "checkpoints"), save_last=True, **POLICIES[task["policy"]]
        )
        track = lfp.RecallMonitor(figures=False)
        more: dict[str, Any] = {}
        callbacks = [pruner, track, notes, keep]
        if task["policy"] == "both":
            at_end = ModelCheckpoint(str(folder / "epochs"), save_last=True, **POLICIES["epoch"])
            callbacks.append(at_end)
        if task["policy"] == "exception":
            callbacks.append(LastWords(folder / "checkpoints" / "last-words.ckpt"))
        batch = settings["batch"]
        if ranks > 1:
            limit = timedelta(seconds=GROUP_SECONDS)
            more = {
                "devices": ranks,
                "strategy": DDPStrategy(process_group_backend="gloo", timeout=limit),
            }
            batch //= ranks
        # Without DataPruning nothing brings a shuffling loader back to its order.
        order = {} if is_data else {"shuffle": False}
        workers = task["workers"] if settings["workers"] is None else settings["workers"]
        data: Any = Data(breaker, batch_size=batch, workers=workers, **order)
        if task["policy"] == "async":
            more["plugins"] = [AsyncCheckpointIO()]
        if is_data and task.get("form") == "wrapper":
            data = lfp.FairPruneDataModule(data)
        model = Model(breaker)
        trainer = users.trainer(
            callbacks=callbacks,
            logger=diary,
            enable_checkpointing=True,
            log_every_n_steps=1,
            max_epochs=settings["max_epochs"],
            accumulate_grad_batches=settings["accumulate"],
            default_root_dir=str(folder),
            **more,
        )
        breaker.install(trainer)
        trainer.fit(model, datamodule=data, ckpt_path="last")
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
        facts = notes.state(model) | (ended(folder) if rank == 0 else {})
        diary.note("end", **facts)
    except SystemExit:
        diary.note("exit")
        raise
    except BaseException as error:
        diary.note("error", text=f"{type(error).__name__}: {error}")
        raise


def child(task: dict[str, Any], rank: int, ranks: int) -> None:
    """The life of a forked process."""
    out = os.open(f"{task['folder']}/out.{task['attempt']}.{rank}", os.O_WRONLY | os.O_CREAT)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(out, 2)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    status = 1
    try:
        fit(task, rank, ranks)
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
