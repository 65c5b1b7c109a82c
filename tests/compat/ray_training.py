"""What each worker of Ray Train runs, in a file of its own that all of them can import, also where Ray is not installed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from compat.harness import Diary
from compat.parts import Classifier, Data, ids

import lightning_fairprune as lfp


def train(config: dict[str, Any]) -> None:
    """Fits without the library, with RecallMonitor and with both callbacks; writes down what this worker found."""
    from ray.train import get_context

    found = {
        "plain": fit(),
        "monitored": fit(lfp.RecallMonitor(figures=False)),
        "pruned": fit(
            lfp.DataPruning(density=0.5, warmup_epochs=1), lfp.RecallMonitor(figures=False)
        ),
    }
    rank = get_context().get_world_rank()
    Path(config["folder"], f"{rank}.json").write_text(json.dumps(found))


def fit(*callbacks: pl.Callback) -> dict[str, Any]:
    """Fits once, as in Ray's guide to Lightning."""
    from ray.train.lightning import RayDDPStrategy, RayLightningEnvironment, prepare_trainer

    pl.seed_everything(1, verbose=False)
    diary = Diary(ids)
    trainer = prepare_trainer(
        pl.Trainer(
            max_epochs=3,
            accelerator="cpu",
            devices="auto",
            strategy=RayDDPStrategy(),
            plugins=[RayLightningEnvironment()],
            callbacks=[*callbacks, diary],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    )
    model = Classifier()
    trainer.fit(model, datamodule=Data())
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().numpy().tobytes())
    return {
        "weights": digest.hexdigest(),
        "samples": diary.samples,
        "kept": diary.kept,
        "recall": {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith("val/recall/class/")
        },
    }
