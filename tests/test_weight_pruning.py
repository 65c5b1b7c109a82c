"""Weights that are pruned stay zero, whatever trains the others; and nothing else is touched."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
import users
from lightning.pytorch.callbacks import (
    Callback,
    EarlyStopping,
    GradientAccumulationScheduler,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, WeightedRandomSampler
from torch.utils.data.distributed import DistributedSampler
from torchmetrics.classification import MulticlassAccuracy
from users import DIM, NUM_CLASSES, Blobs, Data

from lightning_fairprune import DataPruning, RecallMonitor, criteria, masks
from lightning_fairprune.callbacks.weight_pruning import WeightPruning
from lightning_fairprune.masks import schedules
from lightning_fairprune.records.sparsity_record import SparsityRecord

PRUNABLE = 8 * 24 + 24 * 12  # without the classifier


class Net(users.Model):
    """Two hidden layers, normalisation, dropout; any optimiser."""

    def __init__(self, optimizer: Any = torch.optim.SGD, **options: Any) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(DIM, 24),
            nn.BatchNorm1d(24),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.Linear(24, 12),
            nn.ReLU(),
            nn.Linear(12, NUM_CLASSES),
        )
        momentum = {"momentum": 0.9} if optimizer is torch.optim.SGD else {}
        self.make, self.options = optimizer, {"lr": 0.05, "weight_decay": 1e-3} | momentum | options

    def configure_optimizers(self) -> Any:
        return self.make(self.parameters(), **self.options)


class Witness(Callback):
    """Looks at the removed weights after every step and in every validation."""

    def __init__(self, prune: WeightPruning) -> None:
        self.prune, self.looks, self.sparsity = prune, 0, []

    def look(self, module: Any) -> None:
        parameters = dict(module.named_parameters())
        for name, mask in self.prune.masks.items():
            assert not parameters[name].detach()[~mask].any(), name
            self.looks += 1

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        self.look(module)

    def on_validation_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        self.look(module)

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        self.look(module)
        self.sparsity.append(zeros(module) / PRUNABLE)


def zeros(module: Any) -> int:
    return int((module.net[0].weight == 0).sum() + (module.net[4].weight == 0).sum())


def fit(
    prune: WeightPruning | None, *more: Any, model: Any = None, data: Any = None, **options: Any
) -> Any:
    """One fit from a fixed start; the model."""
    pl.seed_everything(1, verbose=False)
    model = Net() if model is None else model
    model = model if isinstance(model, nn.Module) else model()
    witness = [] if prune is None else [prune, Witness(prune)]
    resume = options.pop("resume", None)
    trainer = users.trainer(callbacks=[*witness, *more], **({"max_epochs": 6} | options))
    trainer.fit(model, datamodule=Data() if data is None else data, ckpt_path=resume)
    if prune is not None and prune.pruned:
        assert witness[1].looks
        witness[1].look(model)
    return model


def save_all(folder: Path, monitor: str | None = None) -> ModelCheckpoint:
    return ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1, monitor=monitor)


def digest(model: Any) -> list[Any]:
    return [value.tolist() for value in model.state_dict().values()]


@pytest.mark.parametrize("interval", ["epoch", "step"])
@pytest.mark.parametrize("schedule", schedules.__all__)
def test_each_pruning_removes_exactly_what_is_planned(schedule: str, interval: Any) -> None:
    function = getattr(schedules, schedule)
    scale = 1 if interval == "epoch" else 11
    prune = WeightPruning(
        sparsity=0.83, schedule=function, start=scale, end=4 * scale, every=scale, interval=interval
    )
    model = fit(prune)
    planned = [round(s * PRUNABLE) for s in function(0.83, 4)]
    planned = planned[:1] if schedule == "one_shot" else planned
    assert [round(h.total * PRUNABLE) for h in prune.history] == planned
    assert [h.epoch for h in prune.history] == list(range(1, 1 + len(planned)))
    assert [h.step for h in prune.history] == [11 * h.epoch for h in prune.history]
    assert zeros(model) == round(0.83 * PRUNABLE)
    assert prune.history[-1].total == round(0.83 * PRUNABLE) / PRUNABLE
    assert masks.sparsity_of(prune.masks).total == round(0.83 * PRUNABLE) / PRUNABLE


@pytest.mark.parametrize("scope", ["globally", "per_layer", "erk", "lamp"])
@pytest.mark.parametrize("name", ["magnitude", "gradient", "undecayed", "random", "snip"])
def test_scopes_and_criteria(scope: str, name: str) -> None:
    prune = WeightPruning(getattr(criteria, name), 0.9, scope=getattr(masks, scope))
    assert zeros(fit(prune, max_epochs=4)) == round(0.9 * PRUNABLE)


@pytest.mark.parametrize("name", ["synflow", "synflow_masks"])
def test_synflow_takes_the_shape_of_a_batch(name: str) -> None:
    prune = WeightPruning(getattr(criteria, name), 0.9, start=0, end=0)
    assert zeros(fit(prune, max_epochs=1)) == round(0.9 * PRUNABLE)
    assert [(h.epoch, h.step) for h in prune.history] == [(0, 0)]


def test_fairgrape_with_classes_and_with_groups() -> None:
    found = []
    for group_by in (None, 1, lambda batch: (batch[1] > 1).long()):
        num = {"num_groups": NUM_CLASSES if len(found) < 2 else 2}
        options: Any = {"criterion_options": num, "group_by": group_by}
        prune = WeightPruning(criteria.fairgrape_masks, 0.8, start=1, end=2, **options)
        assert zeros(fit(prune, max_epochs=3)) == round(0.8 * PRUNABLE)
        found.append(prune.masks["net.0.weight"])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_a_removed_weight_never_returns_and_layers_keep_their_floor() -> None:
    found: list[dict[str, Tensor]] = []

    def zeros_first(model: nn.Module, masks: Any) -> dict[str, Tensor]:
        found.append(masks)
        scale = {"net.0.weight": 1.0, "net.4.weight": 1e-6}
        return {n: k / (model.get_parameter(n).detach().abs() + 1e-3) for n, k in scale.items()}

    prune = WeightPruning(zeros_first, 0.9, start=1, end=3, floor=7)
    fit(prune, max_epochs=4)
    assert found[0] is None
    for before, after in pairwise([*found[1:], prune.masks]):
        assert all(not (after[name] & ~before[name]).any() for name in after)
    assert int(prune.masks["net.4.weight"].sum()) == 7


@pytest.mark.parametrize(
    ("options", "epochs", "expected"),
    [
        # In the middle of an epoch.
        ({"start": 3, "end": 17, "every": 7, "interval": "step"}, 3, [(1, 3), (1, 10), (2, 17)]),
        # Fractions of training, never on the last epoch nor before the first.
        ({"start": 0.25, "end": 0.75}, 8, [(k, 11 * k) for k in (2, 3, 4, 5, 6)]),
        ({"start": 0.25, "end": 0.75, "every": 44, "interval": "step"}, 8, [(2, 22), (6, 66)]),
        ({"start": 0.1, "end": 0.99}, 2, [(1, 11)]),
        ({"start": 0.1, "end": 0.99}, 3, [(1, 11), (2, 22)]),
    ],
)
def test_when_it_prunes(options: Any, epochs: int, expected: list[Any]) -> None:
    prune = WeightPruning(sparsity=0.5, **options)
    fit(prune, max_epochs=epochs)
    assert [(h.epoch, h.step) for h in prune.history] == expected


def test_a_module_that_ends_its_epochs_itself_is_pruned_all_the_same() -> None:
    class Short(Net):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> Any:
            return -1 if batch_idx == 4 else None

    prune = WeightPruning(sparsity=0.5, start=1, end=2)
    fit(prune, model=Short())
    assert [(h.epoch, h.step) for h in prune.history] == [(1, 4), (2, 8)]


class Noisy(torch.optim.SGD):
    """Moves every weight, gradient or not, as optimisers with noise or orthogonal updates do."""

    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    p.add_(0.01)
        return loss


OPTIMIZERS = {
    "sgd": Net,
    "nesterov": lambda: Net(nesterov=True),
    "adam": lambda: Net(torch.optim.Adam, lr=0.01),
    "adamw": lambda: Net(torch.optim.AdamW, lr=0.01, weight_decay=0.1),
    "fused": lambda: Net(torch.optim.AdamW, lr=0.01, fused=True),
    "rmsprop": lambda: Net(torch.optim.RMSprop, lr=0.01, momentum=0.9),
    "noisy": lambda: Net(Noisy, momentum=0.9),
}


class MaskedGradients(Callback):
    """What clipping and optimisers see, and what they remember."""

    def __init__(self, prune: WeightPruning) -> None:
        self.prune, self.seen = prune, 0

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        parameters, optimizer = dict(module.named_parameters()), trainer.optimizers[0]
        for name, mask in self.prune.masks.items():
            for value in optimizer.state.get(parameters[name], {}).values():
                if value.shape == mask.shape:
                    assert not value[~mask].any()
                    self.seen += 1


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_optimiser_moves_a_removed_weight_or_remembers_it(name: str) -> None:
    prune = WeightPruning(sparsity=0.8, start=1, end=2)
    memory = MaskedGradients(prune)
    model = OPTIMIZERS[name]()
    fit(prune, memory, model=model, max_epochs=4)
    assert memory.seen or name == "noisy"
    # The others were trained.
    assert int((model.net[0].weight != 0).sum()) == int(prune.masks["net.0.weight"].sum())


class Manual(Net):
    """Steps twice a batch; the second forward pass must not see a removed weight."""

    prune: WeightPruning
    automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for _ in range(2):
            for name, mask in self.prune.masks.items():
                assert not self.get_parameter(name)[~mask].any()
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(F.cross_entropy(self(batch[0]), batch[1]))
            optimizer.step()


def test_manual_optimisation() -> None:
    model = Manual()
    model.prune = WeightPruning(sparsity=0.8, start=1, end=2)
    memory = MaskedGradients(model.prune)
    fit(model.prune, memory, model=model, max_epochs=4)
    assert memory.seen
    # With a loss of its own for the criterion.
    loss = lambda module, batch: F.cross_entropy(module(batch[0]), batch[1])  # noqa: E731
    model.prune = WeightPruning(criteria.gradient, 0.8, start=1, end=2, loss_fn=loss)
    fit(model.prune, model=model, max_epochs=3)
    prune = WeightPruning(criteria.gradient, 0.8, start=1, end=2)
    with pytest.raises(ValueError, match=r"`gradient` needs one loss of a batch.* give `loss_fn`"):
        fit(prune, model=Manual(), max_epochs=3)


def test_clipping_does_not_see_the_gradients_of_removed_weights() -> None:
    norms: list[tuple[float, float]] = []

    class Clipped(Net):
        prune: WeightPruning

        def configure_gradient_clipping(self, optimizer: Any, *args: Any, **more: Any) -> None:
            grads = {n: p.grad for n, p in self.named_parameters()}
            whole = sum(float(g.square().sum()) for g in grads.values())
            gone = [float(grads[n][~m].square().sum()) for n, m in self.prune.masks.items()]
            norms.append((whole, whole - sum(gone)))
            self.clip_gradients(optimizer, *args, **more)

    model = Clipped()
    model.prune = WeightPruning(sparsity=0.8, start=1, end=2)
    fit(model.prune, model=model, gradient_clip_val=0.1)
    assert all(whole == kept for whole, kept in norms)


@pytest.mark.parametrize(
    "options",
    [
        {"accumulate_grad_batches": 3},
        {"gradient_clip_val": 0.5, "gradient_clip_algorithm": "value"},
        {"precision": "bf16-mixed"},
        {"precision": "bf16-true"},
        {"precision": "64-true"},
        {"limit_train_batches": 4},
        {"limit_train_batches": 0.5, "val_check_interval": 0.5},
        {"reload_dataloaders_every_n_epochs": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["magnitude", "undecayed"])
def test_trainer_settings(name: str, options: dict[str, Any]) -> None:
    prune = WeightPruning(getattr(criteria, name), 0.8, start=1, end=2)
    assert zeros(fit(prune, max_epochs=3, **options)) == round(0.8 * PRUNABLE)


def test_with_a_schedule_of_accumulation() -> None:
    prune = WeightPruning(sparsity=0.8, start=4, end=12, every=4, interval="step")
    fit(prune, GradientAccumulationScheduler({0: 3, 1: 2}), max_epochs=4)
    assert [h.step for h in prune.history] == [4, 8, 12]


@pytest.mark.parametrize("name", ["magnitude", "gradient"])
def test_compiled(name: str) -> None:
    plain = fit(WeightPruning(getattr(criteria, name), 0.8, start=1, end=2), model=Net())
    model, prune = Net(), WeightPruning(getattr(criteria, name), 0.8, start=1, end=2)
    compiled = torch.compile(model, backend="eager")
    pl.seed_everything(1, verbose=False)
    users.trainer(callbacks=[prune], max_epochs=6).fit(compiled, datamodule=Data())
    assert zeros(model) == zeros(plain) == round(0.8 * PRUNABLE)


def test_layers_that_are_unfrozen_after_they_were_pruned() -> None:
    class Unfreezing(Net):
        def configure_optimizers(self) -> Any:
            self.net[0].requires_grad_(False)
            return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], 0.01)

        def on_train_epoch_start(self) -> None:
            if self.current_epoch == 3:
                self.net[0].requires_grad_(True)
                self.optimizers().add_param_group({"params": self.net[0].parameters()})
                self.before = self.net[0].weight.detach().clone()

    model = Unfreezing()
    names: Any = {"include": ["net.?.weight"], "exclude": ["net.1.*"]}
    fit(WeightPruning(criteria.gradient, 0.8, start=1, end=2, **names), model=model)
    assert zeros(model) == round(0.8 * PRUNABLE)
    assert not torch.equal(model.net[0].weight, model.before)


@pytest.mark.parametrize("start", [1, 3])
def test_stochastic_weight_averaging(start: int) -> None:
    """Also if it averages models from before a pruning."""
    prune = WeightPruning(sparsity=0.8, start=1, end=3)
    average = StochasticWeightAveraging(0.01, swa_epoch_start=start, annealing_epochs=1)
    model = fit(prune, average, max_epochs=6)
    assert zeros(model) == round(0.8 * PRUNABLE)


def test_exponential_moving_average(tmp_path: Path) -> None:
    averaging = pytest.importorskip("lightning.pytorch.callbacks.weight_averaging")
    if not hasattr(averaging, "EMAWeightAveraging"):
        pytest.skip("this Lightning has no EMAWeightAveraging")
    for before in (True, False):
        prune = WeightPruning(sparsity=0.8, start=1, end=3)
        average = averaging.EMAWeightAveraging(decay=0.9)
        save, model = save_all(tmp_path / str(before)), Net()
        pl.seed_everything(1, verbose=False)
        order = [average, prune, save] if before else [prune, average, save]
        trainer = users.trainer(callbacks=order, max_epochs=5, enable_checkpointing=True)
        trainer.fit(model, datamodule=Data())
        assert zeros(model) == round(0.8 * PRUNABLE)
        for epoch, removed in enumerate([round(h.total * PRUNABLE) for h in prune.history]):
            state = torch.load(tmp_path / str(before) / f"epoch={epoch}.ckpt", weights_only=True)
            saved = state["state_dict"]
            assert sum(int((saved[n] == 0).sum()) for n in prune.masks) == removed


def test_biases_normalisation_and_the_classifier_are_left_alone() -> None:
    prune = WeightPruning(sparsity=0.9, start=1, end=1)
    model = fit(prune, max_epochs=2)
    assert list(prune.masks) == ["net.0.weight", "net.4.weight"]
    others = {n: p for n, p in model.named_parameters() if n not in prune.masks}
    assert all(bool((p != 0).all()) for p in others.values())


ALL_BUT_1: dict[str, Any] = {"include": ["*.weight"], "exclude": ["net.1.*"]}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"keep_classifier": False}, "0.weight 4.weight 6.weight"),
        ({"exclude": ["net.0.*"]}, "4.weight"),
        ({"include": ["net.1.weight", "*.4.*"]}, "1.weight 4.weight 4.bias"),
        (ALL_BUT_1 | {"keep_classifier": False}, "0.weight 4.weight 6.weight"),
    ],
)
def test_include_and_exclude(options: Any, expected: str) -> None:
    prune = WeightPruning(sparsity=0.5, start=1, end=1, **options)
    fit(prune, max_epochs=2)
    assert list(prune.masks) == [f"net.{name}" for name in expected.split()]


def test_a_shared_weight_is_pruned_once() -> None:
    class Tied(Net):
        def __init__(self) -> None:
            super().__init__()
            self.net[4] = nn.Linear(24, 24)
            self.net[6] = nn.Linear(24, NUM_CLASSES)
            self.again = nn.Linear(24, 24)
            self.again.weight = self.net[4].weight

    prune = WeightPruning(sparsity=0.5, start=1, end=1)
    fit(prune, model=Tied(), max_epochs=2)
    assert list(prune.masks) == ["net.0.weight", "net.4.weight"]


def test_layers_that_are_built_late() -> None:
    class Late(Net):
        def __init__(self) -> None:
            super().__init__()
            self.layers, self.net = [self.net], None

        def configure_model(self) -> None:
            if self.net is None:
                self.net = self.layers[0]

    prune = WeightPruning(sparsity=0.8, start=1, end=1)
    assert zeros(fit(prune, model=Late(), max_epochs=2)) == round(0.8 * PRUNABLE)


def test_parameters_stay_what_they_are_and_hooks_go() -> None:
    prune, model = WeightPruning(sparsity=0.8, start=1, end=1), Net()
    before = {name: id(p) for name, p in model.named_parameters()}
    fit(prune, model=model, max_epochs=2)
    assert {name: id(p) for name, p in model.named_parameters()} == before
    assert model.state_dict().keys() == Net().state_dict().keys()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    model.optimizers().optimizer.step()
    assert zeros(model) == 0  # what was removed is trained again
    assert not any("forward" in vars(part) for part in model.modules())


class Spy:
    """Notes what it is given."""

    def __init__(self) -> None:
        self.losses, self.inputs = [], []

    def __call__(self, model: nn.Module, batches: Any, loss_fn: Any) -> dict[str, Tensor]:
        losses = []
        for inputs, target in batches:
            self.inputs.append(inputs)
            losses.append(loss_fn(model(*inputs), target).item())
        self.losses.append(losses)
        return criteria.magnitude(model)


def test_the_criterion_sees_the_gradient_of_the_training_loss() -> None:
    """A saliency reckoned by hand on the same batches gives the same masks."""
    batches = [(blobs.x, blobs.y) for blobs in (Blobs(40, seed=3), Blobs(20, seed=4))]
    found: dict[str, Tensor] = {}

    class ByHand(Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, out: Any, b: Any, i: int) -> None:
            if not found and trainer.current_epoch == 1 and trainer.is_last_batch:
                module.eval()
                names = ["net.0.weight", "net.4.weight"]
                weights = [module.get_parameter(n) for n in names]
                x, y = (torch.cat(part) for part in zip(*batches, strict=True))
                loss = F.cross_entropy(module.net(x), y)
                grads = torch.autograd.grad(loss, weights)
                for n, w, g in zip(names, weights, grads, strict=True):
                    found[n] = (-w * g + 0.1 * w**2).abs().detach()
                module.train()

    prune = WeightPruning(criteria.undecayed, 0.6, start=2, end=2, dataloader=batches)
    pl.seed_everything(1, verbose=False)
    trainer = users.trainer(callbacks=[ByHand(), prune], max_epochs=3)
    trainer.fit(Net(weight_decay=0.1), datamodule=Data())
    expected = masks.globally(found, 0.6)
    assert sum(int((prune.masks[n] != expected[n]).sum()) for n in found) <= 2  # ties in rounding


def test_batches_are_those_of_the_training_loader_and_differ_between_prunings() -> None:
    spy = Spy()
    prune = WeightPruning(spy, 0.6, start=1, end=2, num_batches=3)
    fit(prune, max_epochs=3)
    assert [len(losses) for losses in spy.losses] == [3, 3]
    first, second = spy.inputs[:3], spy.inputs[3:]
    assert [batch_idx for _, batch_idx in first] == [0, 1, 2]
    indices = torch.cat([x[:, 0] for (x, _), _ in first])
    assert len(indices.unique()) == 30
    assert not torch.equal(indices, torch.cat([x[:, 0] for (x, _), _ in second]))
    # Other seeds, other batches; the same seed, the same ones.
    for seed, same in ((0, True), (5, False)):
        again = Spy()
        fit(WeightPruning(again, 0.6, start=1, end=2, num_batches=3, seed=seed), max_epochs=3)
        assert torch.equal(again.inputs[0][0][0], first[0][0][0]) == same


class Disturbed(Net):
    """Has everything that a criterion's forward pass could leave traces in."""

    def __init__(self) -> None:
        super().__init__()
        self.accuracy = MulticlassAccuracy(NUM_CLASSES)
        self.calls = 0

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        logits = self(x)
        self.accuracy(logits, y)
        self.log("train_loss", F.cross_entropy(logits, y), on_step=True, on_epoch=True)
        self.log("train_accuracy", self.accuracy, on_step=False, on_epoch=True)
        if self.logger is not None:
            self.logger.log_metrics({"by_hand": 1.0}, step=self.global_step)
        return {"loss": F.cross_entropy(logits, y)}


class Augmented(Data):
    """Random in the worker, in the loader and on the device."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        x, y = batch
        return x + 0.01 * torch.randn_like(x), y


@pytest.mark.parametrize("pruned_data", [False, True])
@pytest.mark.parametrize(
    "loader",
    [{}, {"workers": 2}, {"generator": True}, {"drop_last": True}],
    ids=["plain", "workers", "generator", "drop_last"],
)
def test_reading_batches_disturbs_nothing(
    loader: dict[str, Any], pruned_data: bool, tmp_path: Path
) -> None:
    """Magnitude with and without a look at batches: the same fit to the last bit, the same logs."""

    def run(criterion: Any, folder: str) -> tuple[Any, Any]:
        options = dict(loader)
        if "generator" in options:
            options["generator"] = torch.Generator().manual_seed(7)
        prune = WeightPruning(criterion, 0.7, start=15, end=25, every=5, interval="step")
        more = [DataPruning(0.5, 2, quota=None)] if pruned_data else []
        logger = CSVLogger(tmp_path / folder, name="", version="")
        options = {"data": Augmented(**options), "logger": logger, "log_every_n_steps": 1}
        model = fit(prune, *more, model=Disturbed, max_epochs=4, **options)
        return digest(model), (tmp_path / folder / "metrics.csv").read_text()

    spy = Spy()
    plain, looked = run(criteria.magnitude, "plain"), run(spy, "looked")
    assert spy.losses
    assert plain == looked


def test_samplers_stay_at_their_epoch() -> None:
    class Sharded(Data):
        def train_dataloader(self) -> Any:
            self.sampler = DistributedSampler(self.train, num_replicas=1, rank=0)
            return DataLoader(self.train, 10, sampler=self.sampler)

    class Epochs(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            assert trainer.datamodule.sampler.epoch == trainer.current_epoch

    for name in ("gradient", "synflow"):
        prune = WeightPruning(getattr(criteria, name), 0.7, start=1, end=2)
        fit(prune, Epochs(), data=Sharded(), max_epochs=3)
        assert prune.pruned


class Stream(torch.utils.data.IterableDataset[Any]):
    """No length, so the Trainer learns of the last batch when it comes."""

    def __iter__(self) -> Any:
        blobs = Blobs(57)
        for index in torch.randperm(57).tolist():
            yield blobs[index]


def loaders(kind: str) -> Any:
    blobs = Blobs(57)
    if kind == "iterable":
        return DataLoader(Stream(), batch_size=10)
    if kind == "weighted":
        return DataLoader(blobs, 10, sampler=WeightedRandomSampler([1.0] * 30 + [2.0] * 27, 57))
    if kind == "batch_sampler":
        return DataLoader(blobs, batch_sampler=BatchSampler(RandomSampler(blobs), 10, True))
    if kind == "persistent":
        return DataLoader(blobs, 10, shuffle=True, num_workers=1, persistent_workers=True)
    return Batches()


@pytest.mark.parametrize("kind", ["iterable", "weighted", "batch_sampler", "persistent", "any"])
def test_any_loader_that_is_given_to_fit(kind: str) -> None:
    def run(criterion: Any) -> Any:
        pl.seed_everything(1, verbose=False)
        prune = WeightPruning(criterion, 0.7, start=1, end=2, num_batches=3)
        steps = {"start": 3, "end": 8, "every": 5, "interval": "step"}
        again = WeightPruning(criterion, 0.8, num_batches=3, **steps)
        found = []
        for callback in (prune, again):
            model = Net()
            trainer = users.trainer(callbacks=[callback], max_epochs=3)
            trainer.fit(model, loaders(kind), DataLoader(Blobs(20), 20))
            found.append((digest(model), callback.history))
        return found

    spy = Spy()
    assert run(spy) == run(criteria.magnitude)
    assert [len(losses) for losses in spy.losses] == [3, 3, 3, 3]


class Batches:
    """Any iterable is a loader; a list would be several."""

    def __iter__(self) -> Any:
        blobs = Blobs(57)
        return iter([(blobs.x[i : i + 10], blobs.y[i : i + 10]) for i in range(0, 50, 10)])


def test_several_loaders_at_once() -> None:
    class Two(Data):
        def train_dataloader(self) -> Any:
            one = super().train_dataloader()
            return {"a": one, "b": DataLoader(Blobs(30, seed=9), batch_size=5)}

    class Both(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch["a"], 0) + super().training_step(batch["b"], 0)

    def run(criterion: Any) -> Any:
        prune = WeightPruning(criterion, 0.8, start=15, end=15, interval="step")
        return digest(fit(prune, model=Both, data=Two(), max_epochs=2))

    spy = Spy()
    assert run(spy) == run(criteria.magnitude)
    assert len(spy.losses[0]) == 8
    prune = WeightPruning(criteria.gradient, 0.8, start=1, end=1)
    fit(prune, model=Both(), data=Two(), max_epochs=2)


def test_example_input() -> None:
    def seen(model: nn.Module, example_input: Any) -> dict[str, Tensor]:
        examples.append(example_input)
        model.eval()(example_input)
        model.train()
        return criteria.magnitude(model)

    examples: list[Any] = []
    fit(WeightPruning(seen, 0.5, start=1, end=1), max_epochs=2)
    assert examples[0].shape == (1, DIM)

    class WithExample(Net):
        example_input_array = torch.zeros(3, DIM)

    fit(WeightPruning(seen, 0.5, start=1, end=1), model=WithExample(), max_epochs=2)
    assert examples[1].shape == (3, DIM)

    class Named(Data):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return {"y": batch[1], "x": batch[0]} if self.trainer.training else batch

    class Dicts(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step((batch["x"], batch["y"]), batch_idx)

    with pytest.raises(ValueError, match="set `example_input_array` of the module"):
        fit(WeightPruning(seen, 0.5, start=0, end=0), model=Dicts(), data=Named(), max_epochs=2)


def test_seeds_of_chance() -> None:
    found = []
    for seed in (0, 0, 1):
        prune = WeightPruning(criteria.random, 0.5, start=1, end=2, seed=seed)
        fit(prune, max_epochs=3)
        found.append(prune.masks["net.0.weight"])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


class Steps(Callback):
    """The weights at the start of each step, and the state of the optimiser."""

    def __init__(self) -> None:
        self.weights, self.lr, self.momenta = [], [], []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self.weights.append({n: v.clone() for n, v in module.state_dict().items()})
        self.lr.append(trainer.optimizers[0].param_groups[0]["lr"])
        self.momenta.append(bool(trainer.optimizers[0].state))


class Scheduled(Net):
    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]


@pytest.mark.parametrize("to", ["start", 0, 1])
def test_rewind_rewinds(to: Any) -> None:
    options = {"schedule": schedules.geometric, "start": 2, "end": 4, "every": 2}
    prune, steps = WeightPruning(sparsity=0.75, rewind=to, **options), Steps()
    fit(prune, steps, model=Scheduled(), max_epochs=6)
    origin = steps.weights[0 if to in ("start", 0) else 11]
    for epoch, done in zip((2, 4), prune.history, strict=True):
        now = steps.weights[11 * epoch]
        gone = 0
        for name, value in now.items():
            if name in prune.masks:
                zero = (value == 0) & (origin[name] != 0)
                gone += int(zero.sum())
                assert torch.equal(value[~zero], origin[name][~zero])
            else:
                assert torch.equal(value, origin[name]), name
        assert gone == round(done.total * PRUNABLE)
        assert steps.lr[11 * epoch] == steps.lr[0 if to in ("start", 0) else 11]
        assert steps.momenta[11 * epoch] == (to == 1)
    # And it trains from there.
    assert not torch.equal(steps.weights[-1]["net.0.weight"], steps.weights[44]["net.0.weight"])


def test_no_rewind_by_default() -> None:
    steps = Steps()
    fit(WeightPruning(sparsity=0.75, start=2, end=2), steps, max_epochs=4)
    before, after = steps.weights[21], steps.weights[22]
    kept = after["net.0.weight"] != 0
    assert (after["net.0.weight"] - before["net.0.weight"])[kept].abs().max() < 0.2
    assert not torch.equal(after["net.0.weight"][kept], steps.weights[0]["net.0.weight"][kept])


def test_rewind_in_the_middle_of_an_epoch() -> None:
    prune = WeightPruning(sparsity=0.75, start=5, end=15, every=10, interval="step", rewind="start")
    steps = Steps()
    fit(prune, steps, max_epochs=2)
    for step in (5, 15):
        value, origin = steps.weights[step]["net.0.weight"], steps.weights[0]["net.0.weight"]
        assert torch.equal(value[value != 0], origin[value != 0])


VALIDATIONS: list[dict[str, Any]] = [
    {},
    {"val_check_interval": 0.5},
    {"val_check_interval": 4},
    {"check_val_every_n_epoch": 2},
    {"check_val_every_n_epoch": None, "val_check_interval": 8},
]


@pytest.mark.parametrize("interval", ["epoch", "step"])
@pytest.mark.parametrize("options", VALIDATIONS, ids=str)
def test_what_is_monitored_is_of_the_weights_that_are_saved(
    options: dict[str, Any], interval: Any, tmp_path: Path
) -> None:
    when = {"start": 1, "end": 4} if interval == "epoch" else {"start": 3, "end": 47, "every": 11}
    prune = WeightPruning(sparsity=0.9, interval=interval, **when)
    save = ModelCheckpoint(tmp_path, monitor="val_loss", filename="{step}", save_top_k=-1)
    fit(prune, save, enable_checkpointing=True, **options)
    found = sorted(tmp_path.glob("*.ckpt"))
    assert len(found) >= 3
    sparse = set()
    val = Blobs(60, seed=1)
    for path in found:
        checkpoint = torch.load(path, weights_only=True)
        state = next(v for k, v in checkpoint["callbacks"].items() if "ModelCheckpoint" in k)
        model = Net().eval()
        model.load_state_dict(checkpoint["state_dict"])
        batches = zip(val.x.split(20), val.y.split(20), strict=True)
        parts = [F.cross_entropy(model(x), y) for x, y in batches]
        assert float(state["current_score"]) == pytest.approx(sum(parts).item() / 3, rel=1e-5)
        sparse.add(zeros(model))
    assert len(sparse) >= 2  # checkpoints between prunings


def test_sparsity_is_logged_where_it_can_be_monitored(tmp_path: Path) -> None:
    class Note(Callback):
        seen: list[float] = []  # noqa: RUF012

        def on_validation_end(self, trainer: Any, module: Any) -> None:
            self.seen.append(round(float(trainer.callback_metrics.get("sparsity/total", -1)), 4))

    prune = WeightPruning(sparsity=0.75, schedule=schedules.geometric, start=1, end=2)
    note = Note()
    fit(prune, note, logger=CSVLogger(tmp_path, name="", version=""), max_epochs=4)
    assert note.seen == [0.5, 0.75, 0.75, 0.75]
    table = (tmp_path / "metrics.csv").read_text().splitlines()
    names = table[0].split(",")
    for name in ("total", "layer/min", "layer/max", "layer/net.0.weight", "layer/net.4.weight"):
        column = [row.split(",")[names.index(f"sparsity/{name}")] for row in table[1:]]
        values = [float(value) for value in column if value]
        assert values
        assert values == sorted(values, key=lambda value: round(value, 5))  # float32 and 64
    by_layer = {n: float((~m).float().mean()) for n, m in prune.masks.items()}
    # The lower of both layers is the minimum.
    last = [row.split(",") for row in table[1:]][-1]
    assert float(last[names.index("sparsity/layer/min")]) == pytest.approx(min(by_layer.values()))
    assert float(last[names.index("sparsity/layer/max")]) == pytest.approx(max(by_layer.values()))


@pytest.mark.parametrize("start", [2, 3])
def test_recalls_against_the_dense_model(start: int) -> None:
    prune = WeightPruning(sparsity=0.9, schedule=schedules.geometric, start=start, end=start + 1)
    monitor = RecallMonitor(reference="before_pruning")
    fit(prune, monitor, max_epochs=6)
    history = monitor.history
    assert all(e.pruned == (e.epoch >= start) for e in history.evaluations)
    dense = next(e for e in history.evaluations if e.epoch == start - 1)
    assert history.reference["val"].tp.tolist() == dense.counts.tp.tolist()


def test_a_reference_that_never_comes_is_told() -> None:
    prune = WeightPruning(sparsity=0.9, start=1, end=2)
    with pytest.warns(UserWarning, match="pruned before the first validation: raise `start`"):
        fit(prune, RecallMonitor(reference="before_pruning"), max_epochs=3)
    prune = WeightPruning(sparsity=0.9, start=0, end=2)
    fit(prune, RecallMonitor(reference="fit_start"), max_epochs=3)


def test_early_stopping_waits_for_the_sparsity_if_told_to() -> None:
    def stopped(**options: Any) -> WeightPruning:
        prune = WeightPruning(sparsity=0.9, start=1, end=4)
        fit(prune, EarlyStopping("val_loss", patience=0, min_delta=100.0), max_epochs=8, **options)
        return prune

    assert stopped(min_epochs=6).history[-1].total == round(0.9 * PRUNABLE) / PRUNABLE
    told = "training ended at a sparsity of .* where 0.9 was planned"
    with pytest.warns(UserWarning, match=told):
        stopped()


def test_a_record_for_the_report(tmp_path: Path) -> None:
    prune = WeightPruning(criteria.undecayed, 0.8, start=1, end=2, exclude=["*.4.*"])
    fit(prune, logger=CSVLogger(tmp_path, name="", version=""), max_epochs=3)
    record = SparsityRecord.load(tmp_path)
    assert record.steps == prune.record.steps == tuple(prune.history)
    assert record.settings == json.loads(json.dumps(prune.record.settings))
    assert record.settings["criterion"] == "undecayed"
    assert record.settings["exclude"] == ["*.4.*"]
    steps = [(s.epoch, s.step, s.target) for s in record.steps]
    assert steps == [(1, 11, schedules.cubic(0.8, 2)[0]), (2, 22, 0.8)]
    assert record.steps[-1].layers == masks.sparsity_of(prune.masks).layers


def test_one_callback_for_several_fits() -> None:
    prune = WeightPruning(criteria.gradient, 0.8, start=1, end=2, rewind="start")
    found = [digest(fit(prune, max_epochs=4)) for _ in range(2)]
    assert found[0] == found[1]
    # One that failed is no hindrance either.
    with pytest.raises(ValueError, match="lower `end`"):
        fit(prune, max_epochs=2)
    assert digest(fit(prune, max_epochs=4)) == found[0]


def test_fast_dev_run_and_evaluation() -> None:
    prune, model = WeightPruning(), Net()
    users.trainer(callbacks=[prune], fast_dev_run=True).fit(model, datamodule=Data())
    assert not prune.pruned
    assert not prune.masks
    trainer = users.trainer(callbacks=[prune])
    trainer.validate(model, datamodule=Data(), verbose=False)


@pytest.mark.parametrize("after", ["continue", "restart"])
def test_with_data_pruning(after: Any) -> None:
    data = DataPruning(0.5, 2, after=after, quota=None)
    for interval, start, end in (("epoch", 3, 4), ("step", 0.8, 0.9)):
        prune = WeightPruning(criteria.gradient, 0.8, interval=interval, start=start, end=end)  # type: ignore[arg-type]
        assert zeros(fit(prune, data, max_epochs=6)) == round(0.8 * PRUNABLE)


def test_a_restart_that_would_undo_pruning_is_refused() -> None:
    data = DataPruning(0.5, 2, after="restart", quota=None)
    for start in (0, 2):
        with pytest.raises(ValueError, match="resets all weights after its warm-up of 2 epochs"):
            fit(WeightPruning(sparsity=0.8, start=start, end=4), data)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"sparsity": 0.0}, r"`sparsity` must be in \(0, 1\)"),
        ({"start": 1.5}, r"`start` must be a whole number of epochs or a fraction .* got 1.5"),
        ({"end": 1.0}, "`end` must be a whole number"),
        ({"start": -1}, "`start` must be 0 or more epochs, got -1"),
        ({"num_batches": 0}, "`num_batches` must be at least 1"),
        ({"rewind": -1}, "`rewind` must be None, 'start' or 0 or more epochs, got -1"),
    ],
)
def test_arguments_are_checked(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        WeightPruning(**options)


GRADIENT, FAIRGRAPE = {"criterion": criteria.gradient}, {"criterion": criteria.fairgrape_masks}
ENDLESS = {"max_epochs": -1, "max_steps": 5}


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"start": 66, "end": 66, "interval": "step"}, "at least one step .* after 66 of 66"),
        ({"end": 3, "trainer": {"max_steps": 33}}, r"at least one step .* 3 epochs \(33 steps\)"),
        ({"start": 0.5, "trainer": ENDLESS}, "length in epochs is unknown"),
        ({"start": 5, "end": 0.2}, "`end` must not be before `start`, got 0.2 and 5"),
        ({"exclude": ["no.such"]}, "`exclude`: no parameter has a name like 'no.such'"),
        ({"schedule": lambda s, n: [0.5] * n}, "end with 0.9"),
        (
            {"criterion_options": {"rounds": 3}},
            "has 'rounds', which is not a parameter of `magnitude`",
        ),
        (FAIRGRAPE, "needs `num_groups`: give criterion_options={'num_groups': ...}"),
        (GRADIENT | {"dataloader": []}, "at least one batch .* it gave none"),
        (GRADIENT | {"loss_fn": lambda module, batch: None}, "`loss_fn` must return a loss"),
    ],
)
def test_refused_before_or_at_the_first_pruning(options: dict[str, Any], match: str) -> None:
    options = {"start": 1, "end": 4} | options
    trainer = options.pop("trainer", {})
    with pytest.raises(ValueError, match=match):
        fit(WeightPruning(**options), **trainer)


@pytest.mark.filterwarnings("ignore:You are using the `dataloader_iter` step flavor")
def test_other_refusals() -> None:
    with pytest.raises(TypeError, match="must be a list of patterns, got the string 'net'"):
        fit(WeightPruning(include="net"))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="can be read only once"):
        fit(WeightPruning(criteria.gradient, dataloader=iter([(torch.zeros(2, DIM), [])])))
    average = StochasticWeightAveraging(0.01, swa_epoch_start=4)
    with pytest.raises(ValueError, match="`rewind` resets the weights, but not the average"):
        fit(WeightPruning(rewind="start"), average)

    class Fetches(Net):
        def training_step(self, dataloader_iter: Any) -> Any:
            batch, _, _ = next(dataloader_iter)
            return F.cross_entropy(self(batch[0]), batch[1])

    with pytest.raises(TypeError, match="fetches its own: give `loss_fn`"):
        fit(WeightPruning(criteria.gradient), model=Fetches())

    class Nothing(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            skip = batch_idx == 1 and not self.training
            return None if skip else super().training_step(batch, batch_idx)

    told = r"training_step must return a loss .* NoneType for batch 1"
    with pytest.raises(ValueError, match=told):
        fit(WeightPruning(criteria.gradient), model=Nothing())


def test_sharded_strategies_are_refused() -> None:
    trainer = SimpleNamespace(callbacks=[], strategy=FSDPStrategy())
    with pytest.raises(ValueError, match="but FSDPStrategy shards them: use DDP or one device"):
        WeightPruning().setup(trainer, Net(), "fit")  # type: ignore[arg-type]
