"""Runs a fit from settings and writes down what happened; as a script one of those of `ranks.launch`."""

from __future__ import annotations

import hashlib
from functools import partial
from typing import Any

import lightning.pytorch as pl
import ranks
import torch
import users
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data.distributed import DistributedSampler

import lightning_fairprune as lfp

SCORES = {
    "el2n": lfp.scores.el2n,
    "forgetting": lfp.scores.forgetting,
    "grad_norm": lfp.gradients.grad_norm,
    "prototype": lfp.geometry.prototype_distance,
}
QUOTAS = {
    "drop": lambda: lfp.quotas.drop,
    "minimax": lambda: lfp.quotas.Minimax(),
    "proportional": lambda: lfp.quotas.proportional,
    "difficulty": lambda: lfp.quotas.difficulty,
}


class ModelData(users.Model):
    """A module that brings its own loaders."""

    def __init__(self, data: users.Data) -> None:
        super().__init__()
        self.data = [data]

    def setup(self, stage: str) -> None:
        self.data[0].setup(stage)

    def train_dataloader(self) -> Any:
        return self.data[0].train_dataloader()

    def val_dataloader(self) -> Any:
        return self.data[0].val_dataloader()


GIVEN: dict[str, Any] = {
    "given": lambda loader: loader,
    "given_dict": lambda loader: {"a": loader},
    "given_list": lambda loader: [loader],
    "given_combined": lambda loader: CombinedLoader({"a": loader}, "min_size"),
}


class PlannedModel(users.Model):
    """Asks for the length of training, which builds the training loader ahead of time."""

    def configure_optimizers(self) -> Any:
        steps = lfp.planned_stepping_batches(self.trainer)
        optimizer = super().configure_optimizers()
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class ShardedData(users.Data):
    """A user who shards by hand."""

    def train_dataloader(self) -> Any:
        self.loader = {"sampler": DistributedSampler(self.train)}
        return super().train_dataloader()


def run(
    *,
    form: str = "wrapper",
    n: int = 103,
    batch_size: int = 10,
    workers: int = 0,
    sharded: bool = False,
    prune: dict[str, Any] | None = None,
    trainer: dict[str, Any] | None = None,
    checkpoint: dict[str, Any] | None = None,
    folder: str | None = None,
    resume: str | None = None,
    planned: bool = False,
    monitor: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Fits once and returns what each epoch did and what came out."""
    pl.seed_everything(1, verbose=False)
    options = {"density": 0.4, "warmup_epochs": 2} | (prune or {})
    if "score" in options:
        options["score"] = SCORES[options["score"]]
    if "quota" in options:
        options["quota"] = QUOTAS[options["quota"]]()
    callback, probe = lfp.DataPruning(**options), users.Probe()
    track = lfp.RecallMonitor(**(monitor or {}))
    callbacks: list[Any] = [callback, probe] if monitor is None else [callback, probe, track]
    if checkpoint is not None:
        name = {"filename": "{epoch}-{step}", "save_top_k": -1}
        callbacks.append(ModelCheckpoint(folder, **(name | checkpoint)))
    kind = partial(ShardedData if sharded else users.Data, n, batch_size, workers)
    plain = PlannedModel if planned else users.Model
    model: Any = ModelData(kind()) if form == "module" else plain()
    data: Any = {"wrapper": lambda: lfp.FairPruneDataModule(kind()), "datamodule": kind}.get(
        form, lambda: None
    )()
    t = users.trainer(
        callbacks=callbacks, enable_checkpointing=checkpoint is not None, **(trainer or {})
    )
    if form in GIVEN:  # without a data module that sets up
        data = kind()
        data.setup("fit")
        given = GIVEN[form](data.train_dataloader()), data.val_dataloader()
        t.fit(model, *given, datamodule=None, ckpt_path=resume)
    else:
        t.fit(model, datamodule=data, ckpt_path=resume)
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().numpy().tobytes())
    return {
        "rank": t.global_rank,
        "planned": probe.planned,
        "batches": probe.batches,
        "validations": probe.validations,
        "samples": probe.samples,
        "kept": callback.selection.indices.tolist(),
        "quota": None if callback.quota is None else callback.quota.tolist(),
        "history": [[h.epoch, h.quota.tolist()] for h in callback.history],
        "weights": digest.hexdigest(),
        "label_errors": None
        if callback.label_errors is None
        else {name: t.tolist() for name, t in callback.label_errors.tensors().items()},
        "reload": t.reload_dataloaders_every_n_epochs,
        "bar": t.num_training_batches,
        "evaluations": [[*e[:4], e.counts.tp.tolist()] for e in track.history.evaluations],
        "reference": {name: c.tp.tolist() for name, c in track.history.reference.items()},
        "support": {name: c.support.tolist() for name, c in track.counts.items()},
        "monitor": monitor,
        "alpha": float(t.callback_metrics.get("val/recall/alpha", float("nan"))),
    }


if __name__ == "__main__":
    ranks.main(run)
