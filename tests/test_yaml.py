"""Every argument of every callback can be written in YAML, and comes back as it was written."""

from __future__ import annotations

from typing import Any

import pytest
import torch.nn.functional as F
from jsonargparse import ArgumentParser

import lightning_fairprune as lfp
from lightning_fairprune import criteria, masks, quotas, scores, weighting
from lightning_fairprune.masks import schedules

# What is written by the path of its import, and what that is.
FUNCTIONS = {
    "lightning_fairprune.quotas.balanced": quotas.balanced,
    "lightning_fairprune.scores.el2n": scores.el2n,
    "lightning_fairprune.weighting.cdb_w_drop": weighting.cdb_w_drop,
    "lightning_fairprune.criteria.undecayed": criteria.undecayed,
    "lightning_fairprune.masks.schedules.geometric": schedules.geometric,
    "lightning_fairprune.masks.lamp": masks.lamp,
    "torch.nn.functional.cross_entropy": F.cross_entropy,
}
PRUNE = {
    "density": 0.3,
    "warmup_epochs": 2,
    "quota": "lightning_fairprune.quotas.balanced",
    "score": "lightning_fairprune.scores.el2n",
    "keep": "stratified",
    "cutoff": 0.1,
    "pool": 0.5,
    "score_on": "training",
    "after": "restart",
    "resample_every": 3,
    "update_every": None,
    "recall_window": 5,
    "shrinkage": 2.5,
    "floor": 4,
    "repeat": 3,
    "group_by": 1,
    "recall_dataloader": 1,
    "logits_fn": "torch.nn.functional.cross_entropy",
    "seed": 3,
}
WEIGHTS = {
    "criterion": "lightning_fairprune.criteria.undecayed",
    "sparsity": 0.8,
    "schedule": "lightning_fairprune.masks.schedules.geometric",
    "scope": "lightning_fairprune.masks.lamp",
    "start": 1,
    "end": 0.5,
    "every": 1,
    "interval": "epoch",
    "include": ["*.weight"],
    "exclude": ["net.1.*"],
    "keep_classifier": True,
    "floor": 2,
    "num_batches": 2,
    "loss_fn": "torch.nn.functional.cross_entropy",
    "criterion_options": {"form": "paper"},
    "group_by": 1,
    "rewind": "start",
    "seed": 3,
}
MONITOR = {
    "num_classes": 2,
    "class_names": ["cat", "dog"],
    "group_by": 1,
    "group_names": ["a", "b"],
    "dataloader_names": ["plain", "other"],
    "every_n_epochs": 2,
    "figures": False,
    "dirpath": "here",
    "logits_fn": "torch.nn.functional.cross_entropy",
}
WEIGH = {
    "weights": "lightning_fairprune.weighting.cdb_w_drop",
    "recall_window": 3,
    "update_every": 2,
    "shrinkage": 0.0,
    "recall_dataloader": 1,
}
CASES: list[tuple[Any, dict[str, Any]]] = [
    (lfp.DataPruning, PRUNE),
    (lfp.WeightPruning, WEIGHTS),
    *((lfp.RecallMonitor, MONITOR | {"reference": r}) for r in (None, "fit_start", "a/folder")),
    (lfp.DataPruning, PRUNE | {"shrinkage": "auto"}),
    *((lfp.ClassWeighting, WEIGH | {"loss": loss}) for loss in (None, "criterion")),
    (lfp.ClassWeighting, WEIGH | {"shrinkage": "auto"}),
]


@pytest.mark.parametrize(("kind", "given"), CASES)
def test_every_argument_comes_back(
    kind: Any, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # newer ones rename a method
    parser = ArgumentParser()
    parser.add_class_arguments(kind, "callback")
    config = parser.parse_object({"callback": given})
    text = parser.dump(config, skip_none=False)  # as SaveConfigCallback does
    settings = parser.instantiate_classes(parser.parse_string(text)).callback.settings
    for name, value in given.items():
        found = getattr(settings, name)
        if isinstance(value, str) and value in FUNCTIONS:
            assert found is FUNCTIONS[value]
        elif isinstance(value, list):
            assert list(found) == value
        else:
            assert found == value or str(found) == value
