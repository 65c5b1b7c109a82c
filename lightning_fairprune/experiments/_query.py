"""The query models: trained on all the data, they leave recalls, dynamics and weights; then passes over them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_fairprune._files import read_tensors, write_tensors
from lightning_fairprune._loading.wrapper import FairPruneDataModule
from lightning_fairprune._observe.warmup import WarmUp
from lightning_fairprune.counts import ClassCounts
from lightning_fairprune.experiments._cells import Cell
from lightning_fairprune.experiments._parts import Method, score_name
from lightning_fairprune.experiments._records import Experiment
from lightning_fairprune.experiments._store import read_result
from lightning_fairprune.experiments._train import (
    END,
    Meter,
    keep_weights,
    loaded,
    monitor,
    recalls,
    trainer,
)
from lightning_fairprune.records.dynamics import Dynamics
from lightning_fairprune.scoring import score_pass

_KIND = "QueryScores"


def run_query(cell: Cell, experiment: Experiment, folder: Path, seed: int) -> dict[str, Any]:
    """Trains one query model and returns what `result.json` says.

    Leaves `dynamics.safetensors`, the weights `early.pt` and `end.pt`, and the folder of the logger.
    """
    query = experiment.query
    users, model = experiment.data(), experiment.model()
    loaded(users)
    data = FairPruneDataModule(users, seed=seed)
    weights = {query.early_epoch: folder / "early.pt", query.epochs: folder / END}
    counted, meter = monitor(experiment, users), Meter()
    observer = _Observer(experiment, data, weights)
    fit = trainer(experiment, folder, [meter, observer, counted], max_epochs=query.epochs)
    fit.fit(model, datamodule=data)
    observer.record.dynamics.save(folder / "dynamics.safetensors")
    counts = recalls(counted, experiment, "val")
    return {
        "tp": counts.tp.tolist(),
        "support": counts.support.tolist(),
        "average": counts.mean,
        "worst": counts.worst,
        "samples_seen": meter.samples,
        "steps": fit.global_step,
        "training_seconds": round(meter.seconds, 3),
    }


def _all_signals(dynamics: Dynamics) -> Tensor:
    # All that scores read, in 15 bytes a sample and epoch, so that methods can be added to a grid that was started.
    names = ("correct", "el2n", "entropy", "loss", "margin", "p_true", "move")
    return sum(dynamics.signal(name)[-1].float() for name in names)  # type: ignore[return-value]


class _Observer(pl.Callback):
    """Records what training saw of each sample in every epoch, and keeps weights after some of them."""

    record: WarmUp

    def __init__(
        self, experiment: Experiment, data: FairPruneDataModule, weights: dict[int, Path]
    ) -> None:
        self.experiment, self.data, self.weights = experiment, data, weights

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.data.source.carry_index = True
        self.data.source.strip_indices(trainer)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.record = WarmUp(
            trainer,
            self.data.source,
            self.experiment.query.epochs,
            score=_all_signals,
            group_by=self.experiment.group_by,
        )

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.record.before_step(pl_module, batch)

    def on_before_backward(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor
    ) -> None:
        self.record.before_backward(pl_module, loss)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, i: int
    ) -> None:
        self.record.after_step(pl_module, outputs, batch)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.record.finish_epoch(trainer.current_epoch)
        if path := self.weights.get(trainer.current_epoch + 1):
            keep_weights(pl_module, path)


# ------------------------------------------------------------------------------------------- passes


def run_score(cell: Cell, experiment: Experiment, folder: Path, query: Path) -> dict[str, Any]:
    """Scores every training sample in one pass of the query model in the folder `query` over them.

    Leaves `scores.safetensors`, and returns what `result.json` says.
    """
    method = next(
        method
        for method in experiment.methods.values()
        if method.score is not None
        and method.score_on == "pass"
        and (score_name(method.score), method.at) == (cell.name, cell.at)
    )
    data, model = experiment.data(), experiment.model()
    loaded(data)
    early = method.at == "early" and experiment.query.early_epoch != experiment.query.epochs
    weights = query / ("early.pt" if early else END)  # one file where the two moments are one
    scoring = _Scoring(method, data, weights)
    # Inside a validation, because there model and batches are where and as training has them.
    validation = trainer(
        experiment, folder, [scoring], logger=False, limit_val_batches=1, inference_mode=False
    )
    validation.validate(model, datamodule=data, verbose=False)
    assert scoring.scores is not None
    write_tensors(folder / "scores.safetensors", _KIND, {"score": scoring.scores})
    return {"pass_seconds": round(scoring.seconds, 3)}


class _Scoring(pl.Callback):
    """Runs the pass when a validation is over."""

    def __init__(self, method: Method, data: Any, weights: Path) -> None:
        self.method, self.data, self.weights = method, data, weights
        self.scores: Tensor | None = None
        self.seconds = 0.0

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert self.method.score is not None
        ordered = getattr(self.data, "plain_dataloader", self.data.train_dataloader)
        start = time.perf_counter()
        with torch.enable_grad():  # gradient norms need it; other scores turn it off themselves
            self.scores = score_pass(
                pl_module, ordered(), self.method.score, checkpoints=[self.weights], progress=False
            )
        self.seconds = time.perf_counter() - start


# ------------------------------------------------------------------------- what a selection reads


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """What the query models of one seed say to one method."""

    target: Tensor  # class or group of each sample, int64 [N]; -1 if no query model was shown it
    recall: Tensor  # of each class, float64 [K], NaN without a validation sample
    score: Tensor | None  # of each sample, float [N], higher = harder; None if the method has none
    seconds: float  # that the score took, over all passes
    query_seconds: float  # that the query models trained


def known(
    method: Method, experiment: Experiment, queries: Sequence[Path], passes: Sequence[Path]
) -> Known:
    """Returns what a method chooses by, averaged over the query models of one seed.

    `queries` are their folders, `passes` those of the passes that the score is taken from, if any.
    """
    facts = [read_result(folder) for folder in queries]
    counts = [ClassCounts(torch.tensor(f["tp"]), torch.tensor(f["support"])) for f in facts]
    most = max(c.num_classes for c in counts)
    shrinkage = experiment.query.shrinkage
    recall = torch.stack([c.padded(most).shrunk_recall(shrinkage) for c in counts]).nanmean(0)
    dynamics = [Dynamics.load(folder / "dynamics.safetensors") for folder in queries]
    targets = [d.target if d.group is None else d.group for d in dynamics]
    target = torch.stack(targets).amax(0)  # -1 only where none of them saw the sample
    start = time.perf_counter()
    scores, seconds = [], 0.0
    if method.score is not None and method.score_on == "training":
        last = experiment.query.early_epoch if method.at == "early" else experiment.query.epochs
        scores = [method.score(_first(d, last)).detach().float().cpu() for d in dynamics]
    for folder in passes:
        tensors, _ = read_tensors(folder / "scores.safetensors", _KIND)
        found = tensors["score"]  # float64 keeps differences that float32 loses
        scores.append(found if found.dtype == torch.float64 else found.float())
        seconds += read_result(folder)["pass_seconds"]
    score = torch.stack(scores).nanmean(0) if scores else None
    if score is not None:
        target = target.masked_fill(score.isnan(), -1)
    return Known(
        target,
        recall,
        score,
        seconds + time.perf_counter() - start,
        sum(f["training_seconds"] for f in facts),
    )


def _first(dynamics: Dynamics, epochs: int) -> Dynamics:
    if epochs >= dynamics.num_epochs:
        return dynamics
    return Dynamics(
        target=dynamics.target,
        signals={name: values[:epochs] for name, values in dynamics.signals.items()},
        group=dynamics.group,
        observed=dynamics.observed[:epochs],
    )
