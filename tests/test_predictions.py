"""Predictions are what the network says, whatever its loss is given."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from typing import Any
from weakref import ref

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
import users
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanMetric
from torchmetrics.classification import BinaryAccuracy, MulticlassAccuracy
from users import DIM, NUM_CLASSES, Blobs

import lightning_fairprune as lfp

N, BATCH, WARMUP, VAL = 53, 8, 2, 60
PRIOR = torch.tensor([0.4, 0.3, 0.2, 0.1])

Loss = Callable[[Any, Tensor, Tensor], Any]


class User(pl.LightningModule):
    """A step whose loss is a function of module, inputs and labels."""

    def __init__(self, loss: Loss, validation: Loss | None = None, outputs: int = NUM_CLASSES):
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(nn.Linear(DIM, 16), nn.ReLU(), nn.Linear(16, outputs))
        self.coarse, self.project = nn.Linear(DIM, 2), nn.Linear(DIM, 5)
        self.accuracy, self.mean = MulticlassAccuracy(NUM_CLASSES), MeanMetric()
        self.binary = BinaryAccuracy()
        self.loss, self.validation = loss, validation or loss

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.loss(self, *batch)

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        said = self.validation(self, *batch)
        return None if isinstance(said, tuple) else said

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.05)


class Memory(pl.Callback):
    """What the network says of each sample before each step, and of the validation data."""

    def __init__(self, outputs: int = NUM_CLASSES) -> None:
        self.logits = torch.full((WARMUP + 1, N, outputs), torch.nan)
        self.samples: list[set[int]] = [set() for _ in range(WARMUP + 1)]

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        x = batch[0]
        ids = (x[:, 0] * 1000).round().long()
        self.samples[trainer.current_epoch].update(ids.tolist())
        with torch.no_grad():
            self.logits[trainer.current_epoch, ids] = module.net(x).detach()


def data(targets: Callable[[Tensor], Tensor] = lambda y: y) -> tuple[Any, Any]:
    train, val = Blobs(N), Blobs(VAL, seed=1)
    sets = [TensorDataset(of.x, targets(of.y)) for of in (train, val)]
    return DataLoader(sets[0], BATCH, shuffle=True), DataLoader(sets[1], 25)


class Module(pl.LightningDataModule):
    def __init__(self, targets: Callable[[Tensor], Tensor] = lambda y: y) -> None:
        super().__init__()
        self.loaders = data(targets)

    def train_dataloader(self) -> Any:
        return self.loaders[0]

    def val_dataloader(self) -> Any:
        return self.loaders[1]


def fitted(
    model: User, targets: Callable[[Tensor], Tensor] = lambda y: y, **options: Any
) -> tuple[lfp.DataPruning, lfp.RecallMonitor, Memory]:
    outputs = (
        NUM_CLASSES if not isinstance(model.net, nn.Sequential) else model.net[-1].out_features
    )
    defaults: dict[str, Any] = {
        "density": 0.5,
        "warmup_epochs": WARMUP,
        "score": hardness,
        "keep": "hard",
        "quota": lfp.quotas.proportional,
    }
    prune = lfp.DataPruning(**(defaults | options))
    monitor, memory = lfp.RecallMonitor(), Memory(outputs)
    trainer = users.trainer(callbacks=[prune, monitor, memory], max_epochs=WARMUP + 1)
    trainer.fit(model, Module(targets))
    return prune, monitor, memory


def hardness(dynamics: lfp.Dynamics) -> Tensor:
    return dynamics.signal("el2n").mean(0) - dynamics.signal("correct").float().mean(0)


def check(
    model: User,
    found: tuple[lfp.DataPruning, lfp.RecallMonitor, Memory],
    logits_of: Callable[[Tensor], Tensor] = lambda z: z,
) -> None:
    """Compares signals, labels and counts with an obvious loop over samples."""
    prune, monitor, memory = found
    seen, target = prune.dynamics, Blobs(N).y
    assert torch.equal(seen.target, target)
    for epoch in range(WARMUP):
        for i, y in enumerate(target.tolist()):
            z = logits_of(memory.logits[epoch, i])
            error = z.softmax(0) - F.one_hot(torch.tensor(y), len(z))
            assert float(seen.signal("el2n")[epoch, i]) == pytest.approx(
                float(error.norm()), abs=2e-3
            )
            assert bool(seen.signal("correct")[epoch, i]) == (int(z.argmax()) == y)
    val, counts = Blobs(VAL, seed=1), monitor.counts["val"]
    tp, support = [0] * counts.num_classes, [0] * counts.num_classes
    for x, y in zip(val.x, val.y.tolist(), strict=True):
        support[y] += 1
        tp[y] += int(logits_of(model.net(x)).argmax()) == y
    assert (counts.tp.tolist(), counts.support.tolist()) == (tp, support)
    assert memory.samples[WARMUP] == set(prune.selection.indices.tolist())


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    """Compiled code of one test would be found by the others."""
    yield
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


# ------------------------------------------------------------------------------- one class per sample


def margin(model: User, x: Tensor, y: Tensor) -> Tensor:
    """The margin of ArcFace and LDAM: the logit of the true class is made smaller."""
    z = model.net(x)
    true = torch.zeros_like(z, dtype=torch.bool).scatter_(1, y.unsqueeze(1), True)
    return F.cross_entropy(3 * torch.where(true, z - 1.5, z), y)


class Margin(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("margins", PRIOR**-0.25)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(z - self.margins[y].unsqueeze(1) * F.one_hot(y, NUM_CLASSES), y)


def in_place(model: User, x: Tensor, y: Tensor) -> Tensor:
    z = model.net(x)
    z += 3 * PRIOR.log()
    return F.cross_entropy(z, y)


def by_hand(model: User, x: Tensor, y: Tensor) -> Tensor:
    log_p = model.net(x).log_softmax(-1)
    return -log_p.gather(1, y.unsqueeze(1)).mean()


def softmax_focal(model: User, x: Tensor, y: Tensor) -> Tensor:
    p = model.net(x).softmax(1)
    hot = F.one_hot(y, NUM_CLASSES)
    return -(hot * (1 - p) ** 2 * p.clamp(1e-8).log()).sum(1).mean()


def smoothed(model: User, x: Tensor, y: Tensor) -> Tensor:
    log_p = F.log_softmax(model.net(x), dim=-1)
    hard = -log_p.gather(dim=-1, index=y.unsqueeze(1)).squeeze(1)
    return (0.9 * hard - 0.1 * log_p.mean(dim=-1)).mean()


def focal(z: Tensor, target: Tensor) -> Tensor:
    """The sigmoid focal loss, over `binary_cross_entropy_with_logits` as torchvision has it."""
    p = z.sigmoid()
    wrong = p * (1 - target) + (1 - p) * target
    losses = F.binary_cross_entropy_with_logits(z, target, reduction="none")
    return (wrong**2 * losses).mean()


def sigmoid_focal(model: User, x: Tensor, y: Tensor) -> Tensor:
    return focal(model.net(x), F.one_hot(y, NUM_CLASSES).float())


def focal_by_class(model: User, x: Tensor, y: Tensor) -> Tensor:
    """One class after the other, as segmentation_models_pytorch does."""
    z = model.net(x)
    losses = [
        F.binary_cross_entropy_with_logits(z[:, c], (y == c).float()) for c in range(NUM_CLASSES)
    ]
    return sum(losses)


def one_hot_bce(model: User, x: Tensor, y: Tensor) -> Tensor:
    hot = torch.full((len(y), NUM_CLASSES), 0.02).scatter_(1, y.unsqueeze(1), 0.94)
    return F.binary_cross_entropy_with_logits(model.net(x), hot)


def mixed_losses(model: User, x: Tensor, y: Tensor) -> Tensor:
    z = model.net(x)
    return 0.3 * F.cross_entropy(z, y) + 0.7 * F.cross_entropy(z, y.flip(0))


def mixed_targets(model: User, x: Tensor, y: Tensor) -> Tensor:
    hot = F.one_hot(y, NUM_CLASSES).float()
    return F.cross_entropy(model.net(x), 0.3 * hot + 0.7 * hot.flip(0))


def coarse_first(model: User, x: Tensor, y: Tensor) -> Tensor:
    coarse = F.cross_entropy(model.coarse(x), y // 2)
    z = model.net(x)
    model.accuracy(z.argmax(1), y)
    return coarse + F.cross_entropy(z, y)


def contrastive_first(model: User, x: Tensor, y: Tensor) -> Tensor:
    h = F.normalize(model.project(x))
    pairs = F.cross_entropy(h @ h.T / 0.1, torch.arange(len(x)))
    return pairs + F.cross_entropy(model.net(x), y)


def negative_distance(model: User, x: Tensor, y: Tensor) -> Tensor:
    """Prototypes: the logits are distances with the other sign, so the loss has them."""
    return F.cross_entropy(-model.net(x), y)


def gradients_first(model: User, x: Tensor, y: Tensor) -> Tensor:
    """The gradient of each sample, by transforms of torch.func, whose tensors have no values afterwards."""
    weights = {name: value.detach() for name, value in model.net.named_parameters()}

    def of_one(given: dict[str, Tensor], one: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model.net, given, (one[None],)), label[None])

    if model.training:
        vmap(grad(of_one), in_dims=(None, 0, 0))(weights, x, y)
    return F.cross_entropy(model.net(x) + PRIOR.log(), y)


def together(model: User, x: Tensor, y: Tensor) -> Tensor:
    weights = {name: torch.stack([p, p]) for name, p in model.net.named_parameters()}
    outputs = vmap(lambda w: functional_call(model.net, w, (x,)))(weights)
    return F.cross_entropy(outputs.mean(0), y)


CASES: dict[str, Loss] = {
    "gradients_first": gradients_first,
    "members_by_vmap": together,
    "plain": lambda m, x, y: F.cross_entropy(m.net(x), y),
    "logit_adjusted": lambda m, x, y: F.cross_entropy(m.net(x) + 3 * PRIOR.log(), y),
    "temperature": lambda m, x, y: F.cross_entropy(m.net(x) / 0.2, y),
    "margin": margin,
    "ldam_module": lambda m, x, y: Margin()(m.net(x), y),
    "in_place": in_place,
    "weights_and_smoothing": lambda m, x, y: F.cross_entropy(
        m.net(x), y, weight=1 / PRIOR, label_smoothing=0.2
    ),
    "one_hot": lambda m, x, y: F.cross_entropy(m.net(x), F.one_hot(y, NUM_CLASSES).float()),
    "nll": lambda m, x, y: F.nll_loss((m.net(x) + PRIOR.log()).log_softmax(1), y),
    "multi_margin": lambda m, x, y: F.multi_margin_loss(m.net(x), y),
    "by_hand": by_hand,
    "softmax_focal": softmax_focal,
    "smoothed_by_hand": smoothed,
    "guarded_by_hand": lambda m, x, y: by_hand(m, x, y.where(y != -100, torch.tensor(0))),
    "sigmoid_focal": sigmoid_focal,
    "focal_by_class": focal_by_class,
    "one_hot_bce": one_hot_bce,
    "mixed_losses": mixed_losses,
    "mixed_targets": mixed_targets,
    "coarse_head_first": coarse_first,
    "contrastive_first": contrastive_first,
    "returned_probabilities": lambda m, x, y: {
        "loss": F.cross_entropy(z := m.net(x), y),
        "preds": z.softmax(1),
        "labels": y,
    },
    "other_label_first": lambda m, x, y: (
        0.3 * F.cross_entropy(z := m.net(x), y.flip(0)) + 0.7 * F.cross_entropy(z, y)
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_signals_and_recalls_are_those_of_the_network(name: str) -> None:
    model = User(CASES[name])
    check(model, fitted(model))


PARTS: dict[str, Callable[[nn.Module], Any]] = {
    "compiled": lambda net: torch.compile(net, backend="eager"),
    "scripted": torch.jit.script,
    "traced": lambda net: torch.jit.trace(net, torch.zeros(2, DIM)),
}


@pytest.mark.parametrize("name", ["plain", "logit_adjusted", "by_hand"])
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_networks_that_take_no_hooks(part: str, name: str) -> None:
    model = User(CASES[name])
    model.net = PARTS[part](model.net)
    check(model, fitted(model))


def test_a_compiled_loss_before_the_one_that_counts() -> None:
    """Losses are numbered with those in compiled code, which the first step does not follow."""

    def both(m: Any, x: Tensor, y: Tensor) -> Tensor:
        m.criterion(m.coarse(x), y // 2)
        return F.cross_entropy(m.net(x) + PRIOR.log(), (y + 1) % NUM_CLASSES)

    model = User(both)
    model.criterion = torch.compile(nn.CrossEntropyLoss(), backend="eager")
    prune, monitor, _ = fitted(model)
    assert torch.equal(prune.dynamics.target, (Blobs(N).y + 1) % NUM_CLASSES)
    val = Blobs(VAL, seed=1)
    labels = (val.y + 1) % NUM_CLASSES
    right = model.net(val.x).argmax(1) == labels
    expected = [int((right & (labels == k)).sum()) for k in range(NUM_CLASSES)]
    assert monitor.counts["val"].tp.tolist() == expected


def test_a_compiled_network_in_a_mode_of_the_step() -> None:
    def on_device(m: Any, x: Tensor, y: Tensor) -> Tensor:
        with torch.device("cpu"):
            z = m.net(x)
        return F.cross_entropy(z + PRIOR.log(), y)

    model = User(on_device)
    model.net = torch.compile(model.net, backend="eager")
    check(model, fitted(model))


def test_a_training_loss_on_some_samples() -> None:
    model = User(lambda m, x, y: F.cross_entropy(m.net(x)[::2], y[::2]), CASES["plain"])
    check(model, fitted(model))


def test_a_validation_of_some_samples() -> None:
    """As of the nodes of a graph that a mask names."""
    model = User(
        CASES["plain"], lambda m, x, y: F.cross_entropy(m.net(x)[x[:, 1] > 0], y[x[:, 1] > 0])
    )
    _, monitor, _ = fitted(model)
    val = Blobs(VAL, seed=1)
    chosen = val.x[:, 1] > 0
    right = model.net(val.x).argmax(1) == val.y
    found = monitor.counts["val"]
    assert found.support.tolist() == [int((chosen & (val.y == k)).sum()) for k in range(4)]
    assert found.tp.tolist() == [int((chosen & right & (val.y == k)).sum()) for k in range(4)]


def test_other_numbers_of_the_classes() -> None:
    model = User(lambda m, x, y: F.cross_entropy(m.net(x) + PRIOR.log(), 3 - y))
    prune, monitor, _ = fitted(model)
    assert torch.equal(prune.dynamics.target, 3 - Blobs(N).y)
    expected = torch.bincount(3 - Blobs(VAL, seed=1).y, minlength=4)
    assert torch.equal(monitor.counts["val"].support, expected)


def test_the_sign_of_logits_is_not_lost() -> None:
    model = User(negative_distance)
    check(model, fitted(model), lambda z: -z)


# ------------------------------------------------------------------------------------------- two classes

BINARY: dict[str, Loss] = {
    "logit": lambda m, x, y: F.binary_cross_entropy_with_logits(m.net(x).squeeze(1), y.float()),
    "column": lambda m, x, y: F.binary_cross_entropy_with_logits(m.net(x), y.float().unsqueeze(1)),
    "probability": lambda m, x, y: F.binary_cross_entropy(m.net(x).sigmoid().view(-1), y.float()),
    "focal": lambda m, x, y: focal(m.net(x).flatten(), y.float()),
}


def test_two_classes_made_from_more() -> None:
    def odd(m: Any, x: Tensor, y: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(m.net(x)[:, 0], (y % 2 == 1).float())

    prune, *_ = fitted(User(odd, outputs=1))
    assert torch.equal(prune.dynamics.target, Blobs(N).y % 2)


def test_a_metric_of_other_probabilities_is_named() -> None:
    def other(m: Any, x: Tensor, y: Tensor) -> Tensor:
        z = m.net(x)[:, 0]
        m.binary((-z).sigmoid(), y)
        return F.binary_cross_entropy_with_logits(z, y.float())

    with pytest.raises(ValueError, match="the metric `binary` is given other predictions than"):
        fitted(User(other, outputs=1), lambda y: y % 2)

    def own(m: Any, x: Tensor, y: Tensor) -> Tensor:
        z = m.net(x)[:, 0]
        m.binary(z.sigmoid(), y)
        return F.binary_cross_entropy_with_logits(z, y.float())

    assert fitted(User(own, outputs=1), lambda y: y % 2)[0].pruned


@pytest.mark.parametrize("name", BINARY)
def test_one_logit_per_sample_is_read_as_two_classes(name: str) -> None:
    model = User(BINARY[name], outputs=1)
    prune, monitor, memory = fitted(model, lambda y: y % 2)
    seen, target = prune.dynamics, Blobs(N).y % 2
    assert torch.equal(seen.target, target)
    for epoch in range(WARMUP):
        for i, y in enumerate(target.tolist()):
            wrong = abs(float(memory.logits[epoch, i].sigmoid()) - y)
            expected = wrong * 2**0.5  # both classes are off by the same
            assert float(seen.signal("el2n")[epoch, i]) == pytest.approx(expected, abs=2e-3)
    val, counts = Blobs(VAL, seed=1), monitor.counts["val"]
    right = (model.net(val.x).squeeze(1) > 0).long() == val.y % 2
    assert counts.tp.tolist() == [int((right & (val.y % 2 == k)).sum()) for k in (0, 1)]


# ------------------------------------------------------------------------- mixed before the step


class Mixing(Module):
    """Mixes inputs and labels where the batch is put together, as torchvision's MixUp does."""

    def __init__(self, known: bool = True) -> None:
        super().__init__()
        self.known = known

    def train_dataloader(self) -> Any:
        blobs = Blobs(N)
        labels = blobs.y if self.known else blobs.y.float()  # these are no class indices

        def mixed(samples: list[Any]) -> Any:
            x, y = torch.utils.data.default_collate(samples)
            hot = F.one_hot(y.long(), NUM_CLASSES).float()
            part = 0.3
            flipped = torch.cat([x[:, :1], part * x[:, 1:] + (1 - part) * x.flip(0)[:, 1:]], 1)
            return flipped, part * hot + (1 - part) * hot.flip(0)

        return DataLoader(TensorDataset(blobs.x, labels), BATCH, shuffle=True, collate_fn=mixed)


def test_labels_of_samples_that_are_mixed_by_the_collate_function() -> None:
    model = User(CASES["plain"])
    prune = lfp.DataPruning(0.5, WARMUP, score=hardness, keep="hard", quota=lfp.quotas.proportional)
    memory = Memory()
    trainer = users.trainer(callbacks=[prune, memory], max_epochs=WARMUP + 1)
    trainer.fit(model, Mixing())
    assert torch.equal(prune.dynamics.target, Blobs(N).y)
    trainer = users.trainer(callbacks=[lfp.DataPruning(0.5, WARMUP)], max_epochs=WARMUP + 1)
    with pytest.raises(ValueError, match=r"class probabilities of mixed samples.*`targets`"):
        trainer.fit(User(CASES["plain"]), Mixing(known=False))


# ----------------------------------------------------------------------------------- validation alone

VALIDATIONS: dict[str, Loss] = {
    "metric": lambda m, x, y: m.accuracy(m.net(x), y),
    "metric_of_ids": lambda m, x, y: m.accuracy.update(m.net(x).argmax(1), y),
    "mean_of_a_number": lambda m, x, y: (
        m.mean.update(m.net(x).mean(), torch.tensor(len(x))),
        m.accuracy.update(m.net(x), y),
    ),
    "returned": lambda m, x, y: {"preds": m.net(x), "target": y},
    "highest_probability": lambda m, x, y: {"right": m.net(x).softmax(1).argmax(1) == y},
}


@pytest.mark.parametrize("name", VALIDATIONS)
def test_a_validation_without_a_loss(name: str) -> None:
    model = User(CASES["logit_adjusted"], VALIDATIONS[name])
    check(model, fitted(model))


# --------------------------------------------------------------------------------------- ignored samples


@pytest.mark.parametrize("label", [-100, 255, 3])
def test_ignored_samples_have_no_class(label: int) -> None:
    def loss(m: Any, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(m.net(x), y, ignore_index=label)

    def some(y: Tensor) -> Tensor:
        return y.masked_fill(y == 3, label)

    model = User(loss)
    prune, monitor, _ = fitted(model, some, quota=lfp.quotas.balanced, density=0.5)
    train, val = Blobs(N).y, Blobs(VAL, seed=1).y
    kept = prune.selection.indices
    known = int((train != 3).sum())
    assert len(kept) == round(0.5 * known)
    assert not bool((train[kept] == 3).any())
    assert int(prune.quota[3]) == 0
    assert int(monitor.counts["val"].support.sum()) == int((val != 3).sum())
    assert int(monitor.counts["val"].support[3]) == 0


# --------------------------------------------------------------------------------------------- positions


def five(y: Tensor) -> Tensor:
    """Five labels a sample, one of them ignored."""
    places = torch.stack([(y + k) % NUM_CLASSES for k in range(5)], 1)
    places[:, 2] = -100
    return places


class Shaped(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return z.view(len(z), NUM_CLASSES, 5)


class Last(nn.Module):
    """Puts the classes last, as language models do."""

    def forward(self, z: Tensor) -> Tensor:
        return z.view(len(z), NUM_CLASSES, 5).movedim(1, 2)


def dense(form: str) -> tuple[User, Loss]:
    losses: dict[str, Loss] = {
        "classes_first": lambda m, x, y: F.cross_entropy(m.net(x), y),
        "adjusted": lambda m, x, y: F.cross_entropy(m.net(x) + PRIOR.log().view(1, -1, 1), y),
        "flat": lambda m, x, y: F.cross_entropy(m.net(x).reshape(-1, NUM_CLASSES), y.view(-1)),
    }
    model = User(losses[form])
    model.net = nn.Sequential(
        nn.Linear(DIM, NUM_CLASSES * 5), Last() if form == "flat" else Shaped()
    )
    return model, losses[form]


@pytest.mark.parametrize("form", ["classes_first", "adjusted", "flat"])
def test_several_positions_a_sample(form: str) -> None:
    model, _ = dense(form)
    prune = lfp.DataPruning(0.5, WARMUP, score=hardness, keep="hard", quota=None)
    monitor = lfp.RecallMonitor()
    logits = torch.full((WARMUP + 1, N, NUM_CLASSES, 5), torch.nan)

    class Note(pl.Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, i: int) -> None:
            ids = (batch[0][:, 0] * 1000).round().long()
            z = module.net(batch[0]).detach()
            logits[trainer.current_epoch, ids] = z.movedim(1, 2) if form == "flat" else z

    trainer = users.trainer(callbacks=[prune, monitor, Note()], max_epochs=WARMUP + 1)
    trainer.fit(model, Module(five))
    target = five(Blobs(N).y)
    for epoch in range(WARMUP):
        for i in range(N):
            errors, right = [], []
            for place in (0, 1, 3, 4):
                z, y = logits[epoch, i, :, place], int(target[i, place])
                errors.append(float((z.softmax(0) - F.one_hot(torch.tensor(y), 4)).norm()))
                right.append(int(z.argmax()) == y)
            el2n = float(prune.dynamics.signal("el2n")[epoch, i])
            assert el2n == pytest.approx(sum(errors) / 4, abs=2e-3)
            assert bool(prune.dynamics.signal("correct")[epoch, i]) == (sum(right) >= 2)
    val = Blobs(VAL, seed=1)
    z, y = model.net(val.x), five(val.y)
    right = (z.movedim(1, 2) if form == "flat" else z).argmax(1) == y
    expected = [int((right & (y == k)).sum()) for k in range(NUM_CLASSES)]
    assert monitor.counts["val"].tp.tolist() == expected
    assert monitor.counts["val"].support.tolist() == torch.bincount(y[y >= 0], minlength=4).tolist()


# ------------------------------------------------------------------------------------------ several labels


def two_labels(y: Tensor) -> Tensor:
    return (F.one_hot(y, NUM_CLASSES) + F.one_hot((y + 1) % NUM_CLASSES, NUM_CLASSES)).float()


def several(m: Any, x: Tensor, y: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(m.net(x), y)


def test_recall_of_each_label() -> None:
    model, monitor = User(several), lfp.RecallMonitor()
    users.trainer(callbacks=[monitor], max_epochs=2).fit(model, Module(two_labels))
    val = Blobs(VAL, seed=1)
    holds = two_labels(val.y) > 0
    counts = monitor.counts["val"]
    assert counts.support.tolist() == holds.sum(0).tolist()
    assert counts.tp.tolist() == (holds & (model.net(val.x) > 0)).sum(0).tolist()


def test_pruning_by_several_labels_is_refused() -> None:
    with pytest.raises(ValueError, match=r"training_step: samples have any number of 4 labels"):
        fitted(User(several), two_labels)


# ---------------------------------------------------------------------------------- what cannot be known


def hidden_margin(m: Any, x: Tensor, y: Tensor) -> Tensor:
    """The classes are in the loss: no module returns logits without the margin."""
    z = m.project(x) @ torch.ones(5, NUM_CLASSES)
    return F.cross_entropy(z - F.one_hot(y, NUM_CLASSES), y)


def two_heads(m: Any, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(m.coarse(x), y // 2) + F.cross_entropy(m.net(x), y)


def other_metric(m: Any, x: Tensor, y: Tensor) -> Tensor:
    z = m.net(x)
    m.accuracy(-z, y)
    return F.cross_entropy(z, y)


def other_order(m: Any, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(m.net(x.flip(0)), y.flip(0))


def numbered_by_hand(m: Any, x: Tensor, y: Tensor) -> Tensor:
    return -m.net(x).log_softmax(1).gather(1, (3 - y).unsqueeze(1)).mean()


def other_returned(m: Any, x: Tensor, y: Tensor) -> Any:
    z = m.net(x)
    return {"loss": F.cross_entropy(z, y), "preds": -z, "labels": y}


UNKNOWN: dict[str, tuple[Loss, str]] = {
    "hidden_margin": (
        hidden_margin,
        "logits that depend on the labels, as of a margin.*`logits_fn`",
    ),
    "two_heads": (
        two_heads,
        r"two predictions, for other labels: .*`coarse`.*\[8, 2\], and .*\[8, 4\].*`logits_fn`",
    ),
    "other_returned": (
        other_returned,
        r"the returned 'preds', \[8, 4\], are other predictions than",
    ),
    "other_order": (
        other_order,
        r"changes the order of its samples: .* \[1\] of the batch.*`logits_fn`",
    ),
    "numbered_by_hand": (numbered_by_hand, r"labels that the step makes from \[1\] of the batch"),
    "other_metric": (other_metric, "the metric `accuracy` is given other predictions than .*`net"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_two_answers_are_named(name: str) -> None:
    loss, match = UNKNOWN[name]
    with pytest.raises(ValueError, match=match):
        fitted(User(loss, CASES["plain"]))


def test_other_classes_in_validation_than_in_training_are_named() -> None:
    def coarse(m: Any, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(m.coarse(x), y // 2)

    with pytest.raises(
        ValueError, match=r"predicts 2 classes \(.*`coarse`.*the validation 4 \(.*net"
    ):
        fitted(User(coarse, CASES["plain"]), quota=lfp.quotas.drop)


def test_one_logits_fn_is_for_all_callbacks() -> None:
    def flipped(module: Any, batch: Any) -> tuple[Tensor, Tensor]:
        return module.net(batch[0]).flip(1), batch[1]

    model, monitor = User(CASES["plain"]), lfp.RecallMonitor()
    prune = lfp.DataPruning(0.5, 1, logits_fn=flipped)
    users.trainer(callbacks=[prune, monitor], max_epochs=2).fit(model, Module())
    val, counts = Blobs(VAL, seed=1), monitor.counts["val"]
    right = model.net(val.x).flip(1).argmax(1) == val.y
    assert counts.tp.tolist() == [int((right & (val.y == k)).sum()) for k in range(4)]
    others = [lfp.RecallMonitor(logits_fn=lambda m, b: flipped(m, b)), prune]
    with pytest.raises(
        ValueError, match="`logits_fn` is one for all callbacks of a Trainer, but 2"
    ):
        users.trainer(callbacks=others, max_epochs=2).fit(User(CASES["plain"]), Module())


def test_the_first_step_leaves_no_tensor_behind() -> None:
    alive: list[Any] = []

    def noted(m: Any, x: Tensor, y: Tensor) -> Tensor:
        z = m.net(x)
        alive.append(ref(z.untyped_storage()))
        return F.cross_entropy(z + PRIOR.log(), y)

    model = User(noted)
    found = fitted(model)
    gc.collect()
    assert found[0].pruned
    assert not any(storage() is not None for storage in alive)


def test_a_scoring_pass_with_a_compiled_loss() -> None:
    class Own(User):
        def __init__(self) -> None:
            super().__init__(lambda m, x, y: m.criterion(m.net(x), y))
            self.criterion = torch.compile(nn.CrossEntropyLoss(), backend="eager")

    model = Own()
    loader = data()[0]
    score = lfp.score_pass(model, loader, lfp.scores.el2n, progress=False)
    z, y = model.net(Blobs(N).x), Blobs(N).y
    expected = (z.softmax(1) - F.one_hot(y, NUM_CLASSES)).norm(dim=1)
    torch.testing.assert_close(score, expected.detach(), atol=1e-5, rtol=0)
