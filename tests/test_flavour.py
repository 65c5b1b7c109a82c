"""The same fits with `pytorch_lightning` as with `lightning.pytorch`, to the last bit."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import users
from torch import nn
from torch.utils.data import DataLoader

import lightning_fairprune as lfp
from lightning_fairprune._lightning import kinds
from lightning_fairprune.callbacks._data import checks as _checks

OTHER = "pytorch_lightning"
needs_both = pytest.mark.skipif(
    importlib.util.find_spec(OTHER) is None,
    reason="pytorch_lightning is not installed, so there is no second flavour to run",
)
pytestmark = [
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used"),
    # The two packages need not be of one version, nor as old as torch.
    pytest.mark.filterwarnings("ignore:The loaded checkpoint was produced with Lightning"),
    pytest.mark.filterwarnings("ignore:You are using `torch.load` with `weights_only=False`"),
]


@cache
def flavour(package: str) -> SimpleNamespace:
    """What a user writes, with one of the two packages."""
    pl = importlib.import_module(package)
    logging.getLogger(package).setLevel(logging.ERROR)

    class Data(pl.LightningDataModule):  # type: ignore[misc, name-defined]
        def __init__(self, batch_size: int = 10) -> None:
            super().__init__()
            self.batch_size = batch_size

        def setup(self, stage: str) -> None:
            self.train_set, self.val_set = users.Blobs(103), users.Blobs(60, seed=1)

        def train_dataloader(self) -> Any:
            return DataLoader(self.train_set, batch_size=self.batch_size, shuffle=True)

        def val_dataloader(self) -> Any:
            return DataLoader(self.val_set, batch_size=20)

        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return [batch[0] * 2, batch[1]]

    class Model(pl.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self, lr: float = 0.1) -> None:
            super().__init__()
            self.net = nn.Sequential(
                nn.Linear(users.DIM, 16), nn.ReLU(), nn.Linear(16, users.NUM_CLASSES)
            )
            self.loss = nn.CrossEntropyLoss()
            self.lr, self.steps = lr, 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.loss(self(batch[0]), batch[1])

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.steps += 1
            self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), self.lr, momentum=0.9)

    class ModelWithData(Model):
        setup, batch_size = Data.setup, 10
        train_dataloader, val_dataloader = Data.train_dataloader, Data.val_dataloader

    ours = lfp if package != OTHER else importlib.import_module("lightning_fairprune.pl")
    return SimpleNamespace(
        pl=pl, Data=Data, Model=Model, ModelWithData=ModelWithData, Wrapper=ours.FairPruneDataModule
    )


QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def fit(
    package: str,
    *callbacks: Any,
    form: str = "datamodule",
    checkpoints: Path | None = None,
    resume: Path | None = None,
) -> tuple[Any, Any]:
    """Fits once, and returns the trainer and the weights."""
    users_side = flavour(package)
    users_side.pl.seed_everything(1, verbose=False)
    model = users_side.ModelWithData() if form == "module" else users_side.Model()
    data = None if form == "module" else users_side.Data()
    saver = users_side.pl.callbacks.ModelCheckpoint(
        checkpoints, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True
    )
    saving = {"enable_checkpointing": True, "callbacks": [*callbacks, saver]}
    options = QUIET | ({"callbacks": [*callbacks]} if checkpoints is None else saving)
    trainer = users_side.pl.Trainer(devices=1, max_epochs=4, **options)
    if form == "wrapper":
        data = users_side.Wrapper(data)
    trainer.fit(model, datamodule=data, ckpt_path=resume)
    return trainer, torch.cat([p.detach().flatten() for p in model.parameters()])


def both(make: Any, **options: Any) -> list[tuple[Any, Any, Any]]:
    """Fits with either package; `make` returns fresh callbacks."""
    found = []
    for package in ("lightning.pytorch", OTHER):
        callbacks = make()
        found.append((callbacks, *fit(package, *callbacks, **options)))
    assert torch.equal(found[0][2], found[1][2])
    return found


PRUNE: dict[str, Any] = {
    "random": lambda: lfp.DataPruning(0.4, 2),
    "el2n": lambda: lfp.DataPruning(
        0.4, 2, score=lfp.scores.el2n, keep="hard", quota=lfp.quotas.Minimax()
    ),
    "restart": lambda: lfp.DataPruning(0.4, 2, after="restart"),
    "grand": lambda: lfp.DataPruning(
        0.4, 2, score=lfp.gradients.grad_norm, keep="hard", score_on="pass"
    ),
}


@needs_both
@pytest.mark.parametrize("form", ["datamodule", "module", "wrapper"])
@pytest.mark.parametrize("prune", PRUNE)
def test_data_pruning(prune: str, form: str) -> None:
    (ours, *_), (theirs, *_) = both(lambda: [PRUNE[prune]()], form=form)
    kept = [callbacks[0].selection.indices.tolist() for callbacks in (ours, theirs)]
    assert kept[0] == kept[1]
    assert len(kept[0]) == round(0.4 * 103)
    assert ours[0].quota.tolist() == theirs[0].quota.tolist()


@needs_both
@pytest.mark.parametrize("twins", [False, True])
def test_the_other_callbacks(twins: bool) -> None:
    def make() -> list[Any]:
        source: Any = importlib.import_module("lightning_fairprune.pl") if twins else lfp
        return [
            source.RecallMonitor(reference="before_pruning"),
            source.WeightPruning(sparsity=0.5, start=2, criterion=lfp.criteria.gradient),
            source.ClassWeighting(),
            source.RecallOffsets(),
            source.DataPruning(0.5, 1),
        ]

    (_, ours, weights), (_, theirs, _) = both(make)
    wanted = {name for name in ours.callback_metrics if name.startswith("val/recall")}
    assert {"val/recall/worst", "val/recall/alpha"} <= wanted
    for name in wanted:
        one, other = (trainer.callback_metrics[name] for trainer in (ours, theirs))
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
    assert (weights == 0).sum() == 64  # half of those that may be pruned: the last layer is spared


@needs_both
@pytest.mark.parametrize("form", ["datamodule", "wrapper"])
def test_resume_and_change_of_flavour(form: str, tmp_path: Path) -> None:
    """A checkpoint of one flavour goes on with the callback of the other."""
    make = PRUNE["el2n"]
    _, full = fit(OTHER, make(), form=form, checkpoints=tmp_path)
    paths = sorted(tmp_path.glob("*.ckpt"))
    assert len(paths) == 4
    for path in paths[:3]:
        _, again = fit(OTHER, make(), form=form, resume=path)
        assert torch.equal(full, again)
    twin = importlib.import_module("lightning_fairprune.pl").DataPruning(
        0.4, 2, score=lfp.scores.el2n, keep="hard", quota=lfp.quotas.Minimax()
    )
    assert torch.equal(full, fit(OTHER, twin, form=form, resume=paths[2])[1])
    assert torch.equal(full, fit("lightning.pytorch", make(), form=form, resume=paths[2])[1])


@needs_both
def test_score_pass_runs_the_modules_own_step() -> None:
    scores = []
    for package in ("lightning.pytorch", OTHER):
        side = flavour(package)
        torch.manual_seed(0)
        model, data = side.Model(), side.Data()
        data.setup("fit")
        loader = data.train_dataloader()
        scores.append(lfp.score_pass(model, loader, lfp.scores.el2n, progress=False))
        assert model.steps == 0  # ran, and was put back
    assert torch.equal(*scores)


@needs_both
def test_wrapper_with_a_selection() -> None:
    side = flavour(OTHER)
    data = side.Data()
    kept = lfp.select(users.Blobs(103).y, torch.tensor([5, 5, 5, 5]))
    wrapped = side.Wrapper(data, selection=kept)
    seen = users.Probe()
    trainer = side.pl.Trainer(max_epochs=1, callbacks=[seen], **QUIET)
    trainer.fit(side.Model(), datamodule=wrapped)
    # The user's hook has doubled the inputs, of which the first is the index.
    assert sorted(i // 2 for i in seen.samples[0]) == kept.indices.tolist()


@needs_both
@pytest.mark.parametrize("package", ["lightning.pytorch", OTHER])
def test_wrapper_of_the_other_flavour_is_told_where_to_go(package: str) -> None:
    other = {"lightning.pytorch": OTHER, OTHER: "lightning.pytorch"}[package]
    where = {OTHER: r"lightning_fairprune\.pl", "lightning.pytorch": "lightning_fairprune"}[other]
    wanted = rf"must be a {package}\.LightningDataModule, got .*Data of {other}: wrap it in {where}\.Fair"
    with pytest.raises(TypeError, match=wanted):
        flavour(package).Wrapper(flavour(other).Data())
    wanted = rf"must be a {package}\.LightningDataModule, got .*Blobs\.$"
    with pytest.raises(TypeError, match=wanted):
        flavour(package).Wrapper(users.Blobs())


@needs_both
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # between Lightning and jsonargparse
def test_its_cli_takes_the_twins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cli = importlib.import_module(f"{OTHER}.cli")
    side = flavour(OTHER)
    config = tmp_path / "config.yaml"
    config.write_text(
        """
trainer:
  accelerator: cpu
  max_epochs: 3
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - class_path: lightning_fairprune.pl.DataPruning
      init_args:
        density: 0.4
        warmup_epochs: 1
        quota:
          class_path: lightning_fairprune.quotas.Minimax
          init_args: {step: 1.0}
    - class_path: lightning_fairprune.pl.RecallMonitor
    - class_path: lightning_fairprune.pl.WeightPruning
      init_args: {sparsity: 0.5}
    - class_path: lightning_fairprune.pl.ClassWeighting
    - class_path: lightning_fairprune.pl.RecallOffsets
model:
  lr: 0.05
data:
  datamodule:
    class_path: users_data.Data
    init_args: {batch_size: 20}
"""
    )
    data = type("Data", (side.Data,), {"__module__": "users_data"})  # by a path that YAML can name
    monkeypatch.setitem(sys.modules, "users_data", SimpleNamespace(Data=data))  # type: ignore[arg-type]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    options = {"save_config_callback": None, "seed_everything_default": 1}
    arguments = ["fit", "--config", str(config)]
    made = cli.LightningCLI(side.Model, side.Wrapper, args=arguments, **options)
    assert made.model.lr == 0.05
    assert made.datamodule.datamodule.batch_size == 20
    assert len(made.trainer.callbacks[0].selection) == round(0.4 * 103)


@needs_both
def test_every_class_that_derives_from_lightnings_has_a_twin() -> None:
    twins = importlib.import_module("lightning_fairprune.pl")
    derived = {
        name
        for name in lfp.__all__
        if isinstance(kind := getattr(lfp, name), type)
        and any(base.__module__.startswith("lightning.pytorch.") for base in kind.__mro__)
    }
    assert set(twins.__all__) == derived


class TestWithoutTheOtherPackage:
    """Class trees are told by name, so a made-up one will do."""

    def tree(self, package: str, *names: str) -> Any:
        kind: type = object
        for name in names:
            kind = type(name, (kind,), {"__module__": f"{package}.some.module"})
        return type("Users", (kind,), {})()

    @pytest.mark.parametrize("package", ["lightning.pytorch", OTHER])
    def test_modules(self, package: str) -> None:
        assert kinds.is_module(self.tree(package, "LightningModule"))
        assert not kinds.is_module(self.tree(package, "LightningDataModule"))
        assert not kinds.is_module(self.tree("mine", "LightningModule"))
        assert not kinds.is_module(self.tree(f"{package}x", "LightningModule"))

    @pytest.mark.parametrize("package", ["lightning.pytorch", OTHER])
    def test_strategies(self, package: str) -> None:
        for name in ("FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy"):
            assert kinds.shards_weights(self.tree(package, "ParallelStrategy", name))
        for name in ("SingleDeviceStrategy", "DDPStrategy"):
            assert not kinds.shards_weights(self.tree(package, name))
            assert kinds.is_strategy(self.tree(package, name), "DDPStrategy", name)
        assert not kinds.is_strategy(self.tree("mine", "DDPStrategy"), "DDPStrategy")

    def test_overridden(self) -> None:
        assert kinds.is_overridden("train_dataloader", users.Data())
        assert not kinds.is_overridden("predict_dataloader", users.Data())
        assert kinds.is_overridden("training_step", users.Model())
        assert not kinds.is_overridden("train_dataloader", users.Model())
        assert kinds.is_overridden("keys", {})
        assert not kinds.is_overridden("train_dataloader", None)

    @pytest.mark.parametrize("package", ["lightning.pytorch", OTHER])
    def test_restart_is_refused_where_weights_are_sharded(self, package: str) -> None:
        """The strategy of DeepSpeed derives from that of DDP."""
        callback = lfp.DataPruning(0.4, 2, after="restart")
        trainer = SimpleNamespace(
            callbacks=[callback],
            overfit_batches=0,
            datamodule=users.Data(),
            enable_validation=True,
            check_val_every_n_epoch=1,
            max_epochs=4,
            strategy=self.tree(package, "DDPStrategy", "DeepSpeedStrategy"),
        )
        with pytest.raises(ValueError, match=r"after='restart' works on one device and with DDP"):
            _checks.trainer(callback.settings, trainer, users.Model())  # type: ignore[arg-type]
