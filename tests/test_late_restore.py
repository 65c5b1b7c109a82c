"""Strategies that shard a model restore a checkpoint only when all is set up: the same must come out.

    python test_late_restore.py settings.json results

runs fits of `scenario` where a strategy ``late_ddp`` is known, one process per rank.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import pytest
import ranks
import scenario
import test_weight_pruning_resume as weights
import torch
import users
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, StrategyRegistry
from test_resume import PRUNE, WHEN, check, saved

import lightning_fairprune as lfp

pytestmark = [
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before"),
]
PACKAGE = str(Path(lfp.__file__).parent)


class Late(SingleDeviceStrategy):
    """Restores as FSDP and DeepSpeed do: after `setup`, the optimisers and `on_fit_start`."""

    restore_checkpoint_after_setup = True


class LateDDP(DDPStrategy):
    restore_checkpoint_after_setup = True


def late() -> Late:
    return Late(torch.device("cpu"))


def resumed(settings: dict[str, Any], path: str) -> dict[str, Any]:
    return scenario.run(**settings, resume=path, trainer={"strategy": late()})


@pytest.mark.parametrize("form", ["wrapper", "datamodule", "module"])
@pytest.mark.parametrize("prune", PRUNE)
def test_from_every_epoch(prune: str, form: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"prune": PRUNE[prune], "form": form}
    early = scenario.run(**settings, checkpoint=WHEN["epoch_end"], folder=str(tmp_path / "early"))
    settings_late = settings | {"folder": str(tmp_path / "late"), "trainer": {"strategy": late()}}
    full = scenario.run(**settings_late, checkpoint=WHEN["epoch_end"])
    check(early, full, "the strategy alone changes nothing")
    paths = saved(tmp_path / "late")
    assert len(paths) == 4
    for path in paths:
        found = resumed(settings, path)
        check(full, found, path)
        assert found["planned"] == {e: full["planned"][e] for e in found["planned"]}


@pytest.mark.parametrize("form", ["wrapper", "datamodule"])
@pytest.mark.parametrize("prune", ["scored", "restart"])
def test_with_a_loader_that_is_built_before_the_checkpoint_is_read(
    prune: str, form: str, tmp_path: Path
) -> None:
    """A schedule that asks for the length of training does that, and the loader has all the data."""
    settings: dict[str, Any] = {"prune": PRUNE[prune], "planned": True, "form": form}
    checkpoint = {"every_n_train_steps": 1, "save_on_train_epoch_end": False}
    full = scenario.run(**settings, checkpoint=checkpoint, folder=str(tmp_path))
    paths = saved(tmp_path, {5, 14, 24, 28})
    assert len(paths) == 4
    for path in paths:
        found = resumed(settings, path)
        check(full, found, path)
        for epoch, batches in found["planned"].items():
            assert batches == full["planned"][epoch], (path, epoch)


@pytest.mark.parametrize("reference", ["fit_start", "before_pruning"])
def test_recalls_and_their_reference(reference: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"prune": PRUNE["scored"], "form": "datamodule"}
    settings["monitor"] = {"reference": reference}
    full = scenario.run(**settings, checkpoint=WHEN["epoch_end"], folder=str(tmp_path))
    for path in saved(tmp_path):
        found = resumed(settings, path)
        check(full, found, path)
        for key in ("evaluations", "reference"):
            assert found[key] == full[key], (path, key)


@pytest.mark.parametrize("name", weights.PRUNE)
def test_weight_pruning(name: str, tmp_path: Path) -> None:
    prune = weights.PRUNE[name]
    checkpoint: dict[str, Any] = {"save_on_train_epoch_end": True}
    full = weights.run(prune=prune, checkpoint=checkpoint, folder=str(tmp_path))
    for path in weights.saved(tmp_path)[:-1]:
        found = weights.run(prune=prune, resume=str(path), strategy=late())
        weights.check(full, found, path.name)


def test_class_weighting(tmp_path: Path) -> None:
    def fit(resume: str | None = None, **options: Any) -> tuple[torch.Tensor, Any]:
        pl.seed_everything(1, verbose=False)
        model, callback = Weighted(), lfp.ClassWeighting()
        data = lfp.FairPruneDataModule(users.Data())
        callbacks: list[Any] = [callback, lfp.DataPruning(0.4, 2)]
        if resume is None:
            callbacks.append(ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1))
        trainer = users.trainer(callbacks=callbacks, enable_checkpointing=resume is None, **options)
        trainer.fit(model, datamodule=data, ckpt_path=resume)
        return model.net[0].weight.detach(), callback.weight

    full = fit()
    for path in saved(tmp_path)[:-1]:
        found = fit(path, strategy=late())
        assert torch.equal(full[0], found[0])
        assert torch.equal(full[1], found[1])


class Weighted(users.Model):
    def __init__(self) -> None:
        super().__init__()
        self.loss = torch.nn.CrossEntropyLoss()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.loss(self(batch[0]), batch[1])


def test_on_two_ranks(tmp_path: Path) -> None:
    trainer = {"devices": 2, "strategy": "late_ddp"}
    base: dict[str, Any] = {"batch_size": 5, "trainer": trainer, "prune": PRUNE["scored"]}
    saving = {"checkpoint": WHEN["epoch_end"], "folder": str(tmp_path / "saved")}
    paths = [str(tmp_path / "saved" / f"epoch={name}.ckpt") for name in ("0-step=11", "2-step=27")]
    fits = [base | saving, *(base | {"resume": path} for path in paths)]
    for full, *found in zip(*ranks.launch(__file__, fits, tmp_path), strict=True):
        for path, record in zip(paths, found, strict=True):
            check(full, record, path)


class FSDPStrategy(Late):
    """By name and package one that shards the weights, which here it does not."""


FSDPStrategy.__module__ = "lightning.pytorch.strategies.made_up"


class Untouchable(users.Model):
    """Notes which of its weights the library asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.touched: list[str] = []

    def _note(self, what: str) -> None:
        frame: FrameType | None = sys._getframe(2)
        if frame is not None and frame.f_code.co_filename.startswith(PACKAGE):
            self.touched.append(f"{what} in {frame.f_code.co_filename}:{frame.f_lineno}")

    def named_parameters(self, *args: Any, **kwargs: Any) -> Any:
        self._note("named_parameters")
        return super().named_parameters(*args, **kwargs)

    def parameters(self, recurse: bool = True) -> Any:
        self._note("parameters")
        return super().parameters(recurse)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        self._note("state_dict")
        return super().state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        self._note("load_state_dict")
        return super().load_state_dict(*args, **kwargs)


def test_sharded_weights_are_left_alone(tmp_path: Path) -> None:
    """Of the whole library only what prunes or scores weights needs them, and says that it cannot."""

    def fit(resume: str | None = None) -> tuple[Untouchable, Any]:
        pl.seed_everything(1, verbose=False)
        model = Untouchable()
        options: Any = {"score": lfp.scores.el2n, "quota": lfp.quotas.Minimax()}
        prune = lfp.DataPruning(0.4, 2, keep="hard", **options)
        callbacks: list[Any] = [prune, lfp.RecallMonitor(reference="before_pruning")]
        if resume is None:
            callbacks.append(ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1))
        options = {"enable_checkpointing": resume is None, "callbacks": callbacks}
        trainer = users.trainer(strategy=FSDPStrategy(torch.device("cpu")), **options)
        trainer.fit(model, datamodule=users.Data(), ckpt_path=resume)
        return model, prune

    model, prune = fit()
    assert model.touched == []
    for path in saved(tmp_path)[:-1]:
        again, resumed = fit(path)
        assert again.touched == []
        assert torch.equal(resumed.selection.indices, prune.selection.indices)


REFUSED: dict[str, tuple[Any, str]] = {
    "restart": (
        lambda: lfp.DataPruning(0.4, 2, after="restart"),
        "after='restart' works on one device and with DDP, got FSDPStrategy",
    ),
    "pass": (
        lambda: lfp.DataPruning(
            0.4, 2, score=lfp.gradients.grad_norm, keep="hard", score_on="pass"
        ),
        "`score_on`: FSDPStrategy shards the weights",
    ),
    "weights": (
        lambda: lfp.WeightPruning(sparsity=0.5),
        "must have all weights on every process, but FSDPStrategy shards them",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_needs_whole_weights_says_so(name: str) -> None:
    make, message = REFUSED[name]
    strategy = FSDPStrategy(torch.device("cpu"))
    trainer = users.trainer(callbacks=[make()], strategy=strategy)
    with pytest.raises(ValueError, match=message):
        trainer.fit(users.Model(), datamodule=users.Data())


if __name__ == "__main__":
    StrategyRegistry.register("late_ddp", LateDDP)
    ranks.main(scenario.run)
