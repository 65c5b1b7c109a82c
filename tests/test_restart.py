"""After a restart nothing of the warm-up is left: what the warm-up did changes no bit of the final model.

Each fit is run twice, once with noise on the weights after each step of the warm-up. The quotas need no recalls, so
that both keep the same samples.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import users
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BaseFinetuning,
    EarlyStopping,
    EMAWeightAveraging,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchmetrics import MaxMetric, MeanMetric
from torchmetrics.wrappers import MetricTracker

import lightning_fairprune as lfp

W = 2


class Noise(users.pl.Callback):
    """Disturbs the weights in the warm-up."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        if trainer.current_epoch < W:
            with torch.no_grad():
                for p in module.parameters():
                    p += 0.3 * torch.randn(p.shape, generator=self.generator)


def fit(model: Any, *callbacks: Any, noise: bool, first: bool = False, **options: Any) -> Any:
    users.pl.seed_everything(1, verbose=False)
    prune = lfp.DataPruning(0.4, W, quota=lfp.quotas.proportional, after="restart")
    disturbed = [Noise()] if noise else []
    both = [*callbacks, prune] if first else [prune, *callbacks]
    trainer = users.trainer(callbacks=[*disturbed, *both], **options)
    trainer.fit(model, datamodule=users.Data())
    return trainer


def digest(tensors: Any) -> list[float]:
    return [v for t in tensors for v in t.detach().double().flatten().tolist()]


def same(
    build: Callable[[], tuple[Any, list[Any]]], read: Callable[..., Any], **options: Any
) -> Any:
    """Asserts that a fit whose warm-up was disturbed ends alike, and returns what it ends with."""
    found = []
    for noise in (False, True):
        users.pl.seed_everything(2, verbose=False)
        model, callbacks = build()
        trainer = fit(model, *callbacks, noise=noise, **options)
        found.append((digest(model.parameters()), read(model, callbacks, trainer)))
    assert found[0] == found[1]
    return found[0][1]


def nothing(*_: Any) -> None:
    return None


# ----------------------------------------------------------------------------- averages of weights


class Shadow(users.pl.Callback):
    """An average as a dictionary of tensors."""

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        self.shadow = {n: p.detach().clone() for n, p in module.named_parameters()}

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        for n, p in module.named_parameters():
            self.shadow[n].lerp_(p.detach(), 0.1)

    def average(self) -> list[float]:
        return digest(self.shadow.values())


class Lazy(users.pl.Callback):
    """An average that is made after the first step."""

    ema: Any = None

    def __init__(self) -> None:
        self.ema = None

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        if self.ema is None:
            self.ema = copy.deepcopy(module.net)
        with torch.no_grad():
            for mine, theirs in zip(self.ema.parameters(), module.net.parameters(), strict=True):
                mine.lerp_(theirs, 0.1)

    def average(self) -> list[float]:
        return digest(self.ema.parameters())


class Object(users.pl.Callback):
    """An average in an object of another library, with a number of updates that its decay depends on."""

    class Average:
        def __init__(self, module: Any) -> None:
            self.weights = [p.detach().clone() for p in module.parameters()]
            self.updates = 0

        def update(self, module: Any) -> None:
            self.updates += 1
            for mine, theirs in zip(self.weights, module.parameters(), strict=True):
                mine.lerp_(theirs.detach(), 1 / (10 + self.updates))

        def state_dict(self) -> dict[str, Any]:
            return {"weights": self.weights, "updates": self.updates}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.weights, self.updates = state["weights"], state["updates"]

    def on_train_start(self, trainer: Any, module: Any) -> None:
        self.ema = self.Average(module)

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        self.ema.update(module)

    def average(self) -> list[float]:
        return digest(self.ema.weights)


@pytest.mark.parametrize("kind", [Shadow, Lazy, Object])
@pytest.mark.parametrize("first", [True, False])
def test_averages_of_callbacks(kind: Any, first: bool) -> None:
    same(lambda: (users.Model(), [kind()]), lambda m, c, t: c[0].average(), first=first)


@pytest.mark.filterwarnings("ignore:.*_average_model")
@pytest.mark.parametrize(
    "average", [WeightAveraging, lambda: EMAWeightAveraging(decay=0.9)], ids=["mean", "ema"]
)
def test_weight_averaging(average: Any) -> None:
    # The callback puts its average into the model at the end.
    same(lambda: (users.Model(), [average()]), nothing)


def test_an_average_in_the_module() -> None:
    class Model(users.Model):
        def __init__(self) -> None:
            super().__init__()
            self.ema = AveragedModel(self.net, multi_avg_fn=get_ema_multi_avg_fn(0.9))
            self.ema.requires_grad_(False)

        def on_train_batch_end(self, *_: Any) -> None:
            self.ema.update_parameters(self.net)

    found = same(lambda: (Model(), []), lambda m, c, t: int(m.ema.n_averaged))
    assert found == 2 * 5


@pytest.mark.parametrize("start", [1, W + 1, W / 4])
def test_stochastic_averaging_of_the_warm_up_is_refused(start: Any) -> None:
    average = StochasticWeightAveraging(0.1, start)
    with pytest.raises(ValueError, match=r"StochasticWeightAveraging.* swa_epoch_start above 3"):
        fit(users.Model(), average, noise=False)


@pytest.mark.filterwarnings("ignore:.*SWA")
def test_stochastic_averaging_after_the_restart() -> None:
    same(lambda: (users.Model(), [StochasticWeightAveraging(0.1, W + 2)]), nothing, max_epochs=6)


# ---------------------------------------------------------------------------------- fine-tuning


class Backbone(users.Model):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = self.net[0]

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.net[2].parameters(), 0.1, momentum=0.9)


@pytest.mark.parametrize("epoch", [0, 1, W])
def test_fine_tuning_in_the_warm_up_is_refused(epoch: int) -> None:
    with pytest.raises(ValueError, match=r"BackboneFinetuning.*unfreeze_backbone_at_epoch above 2"):
        fit(Backbone(), BackboneFinetuning(epoch), noise=False)


def test_fine_tuning_of_an_unknown_kind_is_refused() -> None:
    class Tuning(BaseFinetuning):
        def freeze_before_training(self, module: Any) -> None:
            self.freeze(module.backbone)

        def finetune_function(self, module: Any, epoch: int, optimizer: Any) -> None:
            pass

    with pytest.raises(ValueError, match="does not work with Tuning"):
        fit(Backbone(), Tuning(), noise=False)


def test_fine_tuning_after_the_restart() -> None:
    def read(model: Any, callbacks: Any, trainer: Any) -> int:
        return len(trainer.optimizers[0].param_groups)

    assert same(lambda: (Backbone(), [BackboneFinetuning(W + 1)]), read, max_epochs=6) == 2


# ----------------------------------------------------------------- what appears in the warm-up


class Grows(users.Model):
    """Buffers that appear in the first step, one that was None, and one that changes its shape."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("empty", None)
        self.register_buffer("wide", torch.zeros(2))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        mean = batch[0].mean(0).detach() * self.net[0].weight.detach().mean()
        if not hasattr(self, "centre"):
            self.register_buffer("centre", torch.zeros_like(mean))
            self.wide = torch.zeros(3)
        self.centre.lerp_(mean, 0.1)
        self.empty = mean if self.empty is None else self.empty.lerp(mean, 0.1)
        x, y = batch
        return nn.functional.cross_entropy(self(x - self.centre + self.empty), y)


def test_buffers_that_appear_in_the_warm_up() -> None:
    shapes = {}

    class Looks(users.pl.Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, i: int) -> None:
            if i == 0:
                named = {n: None if b is None else len(b) for n, b in module._buffers.items()}
                shapes[trainer.current_epoch] = named

    same(lambda: (Grows(), [Looks()]), lambda m, c, t: digest(m.buffers()))
    assert shapes[0] == shapes[W] == {"empty": None, "wide": 2}
    assert shapes[1] == shapes[W + 1] == {"empty": 8, "wide": 3, "centre": 8}


@pytest.mark.filterwarnings("ignore:.*keeps `cache`")
def test_a_cache_that_appears_in_the_warm_up_is_kept_and_named() -> None:
    class Model(users.Model):
        cached = False

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if not self.cached:
                self.register_buffer("cache", torch.ones(8), persistent=False)
                self.cached = True
            x, y = batch
            return nn.functional.cross_entropy(self(x * self.cache), y)

    same(lambda: (Model(), []), nothing)
    with pytest.warns(UserWarning, match="keeps `cache`"):
        fit(Model(), noise=False)


def test_groups_and_flags_that_change_in_the_warm_up() -> None:
    class Model(Backbone):
        def setup(self, stage: str) -> None:
            self.backbone.requires_grad_(False)

        def on_train_epoch_start(self) -> None:
            if self.current_epoch == 1:
                self.backbone.requires_grad_(True)
                group = {"params": list(self.backbone.parameters()), "lr": 0.01}
                self.trainer.optimizers[0].add_param_group(group)

    def read(model: Any, callbacks: Any, trainer: Any) -> Any:
        flags = [p.requires_grad for p in model.backbone.parameters()]
        return flags, len(trainer.optimizers[0].param_groups)

    assert same(lambda: (Model(), []), read) == ([False, False], 1)


def test_optimisers_that_are_replaced_in_the_warm_up() -> None:
    class Model(users.Model):
        def configure_optimizers(self) -> Any:
            part = self.net if self.current_epoch == 1 else self.net[2]
            return torch.optim.SGD(part.parameters(), 0.1)

        def on_train_epoch_start(self) -> None:
            if self.current_epoch == 1:
                self.trainer.strategy.setup_optimizers(self.trainer)

    def read(model: Any, callbacks: Any, trainer: Any) -> int:
        return len(trainer.optimizers[0].param_groups[0]["params"])

    assert same(lambda: (Model(), []), read) == 2


@pytest.mark.parametrize("change", ["added", "removed", "reshaped"])
def test_parameters_that_change_in_the_warm_up_are_refused(change: str) -> None:
    class Model(users.Model):
        def on_train_epoch_start(self) -> None:
            if self.current_epoch != 1:
                return
            if change == "added":
                self.more = nn.Linear(2, 2)
            elif change == "removed":
                self.net[2].bias = None
            else:
                self.net[0], self.net[2] = nn.Linear(8, 20), nn.Linear(20, 4)

    with pytest.raises(RuntimeError, match=rf"was {change} in the warm-up"):
        fit(Model(), noise=False)


@pytest.mark.filterwarnings("ignore:.*[Ll]azy", "ignore:.*uninitialized")
def test_weights_without_values_are_refused() -> None:
    model = users.Model()
    model.net[0] = nn.LazyLinear(16)
    with pytest.raises(ValueError, match=r"`net.0.weight` has no values before the first batch"):
        fit(model, noise=False)


# ------------------------------------------------------------------------ optimisers and schedules


def test_plateau_and_several_optimisers() -> None:
    class Model(users.Model):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.lower: list[float] = []

        def configure_optimizers(self) -> Any:
            first = torch.optim.Adam(self.net[0].parameters(), 0.05)
            second = torch.optim.SGD(self.net[2].parameters(), 0.1, momentum=0.9)
            # Not among those of the Trainer: the module holds and steps it.
            self.plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(second, patience=0)
            return [first, second]

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            for optimizer in self.optimizers():
                optimizer.zero_grad()
            self.manual_backward(loss)
            for optimizer in self.optimizers():
                optimizer.step()
            self.plateau.step(loss.detach())
            return {"loss": loss}

    def read(model: Any, callbacks: Any, trainer: Any) -> Any:
        return model.plateau.best, model.plateau.num_bad_epochs, model.plateau.last_epoch

    assert same(lambda: (Model(), []), read)[2] == 10


def test_a_plateau_of_the_trainer() -> None:
    class Model(users.Model):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": schedule, "monitor": "val_loss"},
            }

    def read(model: Any, callbacks: Any, trainer: Any) -> Any:
        schedule = trainer.lr_scheduler_configs[0].scheduler
        return schedule.best, schedule.num_bad_epochs

    same(lambda: (Model(), []), read)


# -------------------------------------------------------------------------- scores and metrics


class Best(users.Model):
    """Logs a value that is best in the warm-up."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        value = 0.9 if self.trainer.current_epoch < W else 0.1 * self.trainer.current_epoch
        self.log("score", value)


@pytest.mark.parametrize("top", [1, 2, -1])
@pytest.mark.parametrize("name", [None, "best"])
def test_the_best_of_the_warm_up_does_not_win(top: int, name: str | None, tmp_path: Path) -> None:
    keeps = ModelCheckpoint(tmp_path, monitor="score", mode="max", save_top_k=top, filename=name)
    fit(Best(), keeps, noise=False, enable_checkpointing=True, max_epochs=5)
    assert float(keeps.best_model_score) == pytest.approx(0.4)
    saved = torch.load(keeps.best_model_path, weights_only=True)
    assert saved["epoch"] == 4
    if top > 0:
        epochs = [torch.load(p, weights_only=True)["epoch"] for p in tmp_path.glob("*.ckpt")]
        assert sorted(epochs) == list(range(5 - top, 5))


def test_stopping_counts_from_the_restart() -> None:
    stops = EarlyStopping("score", mode="max", patience=2)
    trainer = fit(Best(), stops, noise=False, max_epochs=6)
    assert trainer.current_epoch == 6
    assert stops.wait_count == 0
    assert float(stops.best_score) == pytest.approx(0.5)


def test_metrics_of_the_module() -> None:
    class Model(users.Model):
        def __init__(self) -> None:
            super().__init__()
            self.best, self.mean = MaxMetric(), MeanMetric()
            self.tracker = MetricTracker(MeanMetric(), maximize=True)

        def on_train_epoch_start(self) -> None:
            self.tracker.increment()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            for metric in (self.best, self.mean, self.tracker):
                metric.update(loss.detach())
            return loss

    def read(model: Any, callbacks: Any, trainer: Any) -> Any:
        best = model.tracker.best_metric()
        return float(model.best.compute()), float(model.mean.compute()), best, model.tracker.n_steps

    assert same(lambda: (Model(), []), read)[3] == 2


def test_the_rates_of_a_fit_are_monitored(tmp_path: Path) -> None:
    class Model(users.Model):
        def configure_optimizers(self) -> Any:
            steps = lfp.planned_stepping_batches(self.trainer)
            optimizer = super().configure_optimizers()
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=steps)
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=1)
    monitor = LearningRateMonitor("step")
    fit(Model(), monitor, noise=False, logger=logger, log_every_n_steps=1)
    rates = [row["lr-SGD"] for row in logger.experiment.metrics if "lr-SGD" in row]
    assert len(rates) in (0, 32)
    assert monitor.lrs["lr-SGD"][22] == monitor.lrs["lr-SGD"][0]


def test_a_resumed_warm_up_restarts_averages(tmp_path: Path) -> None:
    class Resumable(Object):
        def on_train_start(self, trainer: Any, module: Any) -> None:
            super().on_train_start(trainer, module)
            if trainer.current_epoch:
                self.ema.load_state_dict(copy.deepcopy(self.state))

        def state_dict(self) -> dict[str, Any]:
            return copy.deepcopy(self.ema.state_dict())

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.state = state

    found = []
    for resume in (None, 0, 1):
        path = None if resume is None else str(tmp_path / f"epoch={resume}.ckpt")
        users.pl.seed_everything(1, verbose=False)
        ema, model = Resumable(), users.Model()
        prune = lfp.DataPruning(0.4, W, quota=lfp.quotas.proportional, after="restart")
        saves = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
        callbacks = [prune, ema, *([saves] if path is None else [])]
        trainer = users.trainer(callbacks=callbacks, enable_checkpointing=path is None)
        if path is None:
            trainer.fit(model, datamodule=users.Data())
        else:
            with pytest.warns(UserWarning, match="Be aware that when using `ckpt_path`"):
                trainer.fit(model, datamodule=users.Data(), ckpt_path=path, weights_only=True)
        found.append((digest(model.parameters()), ema.average(), ema.ema.updates))
    assert found[0] == found[1] == found[2]
    assert found[0][2] == 10
