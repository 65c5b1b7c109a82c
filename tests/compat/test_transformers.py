"""transformers: the module of Lightning's GLUE tutorial with a small random BERT; the loss is inside the network."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from compat import harness
from torch import Tensor
from torch.utils.data import DataLoader

import lightning_fairprune as lfp
from lightning_fairprune import planned_stepping_batches

pytest.importorskip("transformers")

from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    default_data_collator,
    get_linear_schedule_with_warmup,
)

N, CLASSES, LENGTH = 60, 3, 6
IGNORED = -100
TRAIN, VAL = harness.labels_of(N), harness.labels_of(45, seed=1)
CONFIG = BertConfig(
    vocab_size=200,
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=16,
    max_position_embeddings=LENGTH,
    num_labels=CLASSES,
)


def sentences(labels: Tensor, seed: int) -> list[dict[str, Any]]:
    """Tokens 10 to 39, the second from the class; the first says which sentence it is."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(10, 40, (len(labels), LENGTH), generator=generator)
    tokens[:, 0] = 100 + torch.arange(len(labels))
    tokens[:, 1] = labels
    mask = torch.ones_like(tokens)
    return [
        {"input_ids": t, "attention_mask": m, "labels": int(y)}
        for t, m, y in zip(tokens, mask, labels, strict=True)
    ]


class Glue(pl.LightningDataModule):
    def sentences(self, labels: Tensor, seed: int) -> list[dict[str, Any]]:
        return sentences(labels, seed)

    def train_dataloader(self) -> Any:
        return DataLoader(
            self.sentences(TRAIN, 0), batch_size=8, shuffle=True, collate_fn=default_data_collator
        )

    def val_dataloader(self) -> Any:
        return DataLoader(self.sentences(VAL, 1), batch_size=8, collate_fn=default_data_collator)

    test_dataloader = val_dataloader


class GLUETransformer(pl.LightningModule):
    def __init__(self, steps: Any = planned_stepping_batches) -> None:
        super().__init__()
        self.steps = steps
        self.model = AutoModelForSequenceClassification.from_config(CONFIG)
        self.outputs: list[dict[str, Tensor]] = []

    def forward(self, **inputs: Any) -> Any:
        return self.model(**inputs)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        outputs = self(**batch)
        return outputs[0]

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        val_loss, logits = self(**batch)[:2]
        preds = torch.argmax(logits, dim=1)
        self.outputs.append({"loss": val_loss, "preds": preds, "labels": batch["labels"]})
        return val_loss

    def on_validation_epoch_end(self) -> None:
        preds = torch.cat([x["preds"] for x in self.outputs])
        labels = torch.cat([x["labels"] for x in self.outputs])
        loss = torch.stack([x["loss"] for x in self.outputs]).mean()
        self.outputs.clear()
        self.log("val_loss", loss, prog_bar=True)
        self.log("accuracy", (preds == labels).float().mean())

    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        # The tutorial reads `self.trainer.estimated_stepping_batches`.
        schedule = get_linear_schedule_with_warmup(optimizer, 2, self.steps(self.trainer))
        return [optimizer], [{"scheduler": schedule, "interval": "step", "frequency": 1}]


def estimated(trainer: Any) -> int:
    return int(trainer.estimated_stepping_batches)


def project(name: str, model: Any) -> harness.Project:
    return harness.Project(
        name,
        model,
        lambda: {"datamodule": Glue()},
        ids=lambda batch: batch["input_ids"][:, 0] - 100,
        labels=TRAIN,
        predict=lambda module, batch: (module(**batch).logits.argmax(1), batch["labels"]),
    )


class Tagger(pl.LightningModule):
    """Names of entities: a class for each token, none for the first of a sentence."""

    def __init__(self) -> None:
        super().__init__()
        self.model = AutoModelForTokenClassification.from_config(CONFIG)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.model(**batch).loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.model(**batch).loss)

    test_step = validation_step

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.01)


class Tags(Glue):
    def sentences(self, labels: Tensor, seed: int) -> list[dict[str, Any]]:
        found = super().sentences(labels, seed)
        for one in found:
            one["labels"] = (one["input_ids"] * one["input_ids"].roll(1)) % CLASSES
            one["labels"][0] = IGNORED
        return found


def tags(module: Any, batch: Any) -> tuple[Tensor, Tensor]:
    known = batch["labels"] != IGNORED
    return module.model(**batch).logits.argmax(2)[known], batch["labels"][known]


PROJECTS = [
    project("GLUE", GLUETransformer),
    replace(
        project("tokens", Tagger),
        data=lambda: {"datamodule": Tags()},
        labels=torch.zeros(N, dtype=torch.int64),  # a sentence has no class
        predict=tags,
        prune={"quota": None, "score": lfp.scores.el2n, "keep": "hard"},
    ),
]


def test_project(check: Any, runs: harness.Runs) -> None:
    check(runs)


def test_schedule_of_the_tutorial_is_warned_of(tmp_path: Any) -> None:
    """It is right in everything but the length of its schedule, which is of epochs on all the data."""
    runs = harness.Runs(project("tutorial", partial(GLUETransformer, estimated)), tmp_path)
    harness.monitor_changes_nothing(runs)
    with pytest.warns(UserWarning, match=r"planned_stepping_batches\(trainer\) instead"):
        runs.pruned  # noqa: B018
    harness.recalls_are_those_of_the_network(runs)
    harness.selection_is_what_is_trained_on(runs)
