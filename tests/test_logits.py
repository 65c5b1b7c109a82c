"""Logits and targets come out of modules that nobody changed, and nothing stays behind."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
import users
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from users import NUM_CLASSES, Blobs, Data, Model

import lightning_fairprune as lfp
from lightning_fairprune.callbacks import _warmup
from lightning_fairprune.callbacks._observe import TrainingObserver

N, BATCH, WARMUP = 53, 8, 2
DATA = {"n": N, "batch_size": BATCH}


def hardness(dynamics: lfp.Dynamics) -> Tensor:
    """A score that makes both signals be recorded."""
    return dynamics.signal("el2n").mean(0) - dynamics.signal("correct").float().mean(0)


class Remembering(Model):
    """Writes down the logits that it computed for each sample, the first time in an epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = torch.full((WARMUP + 1, N, NUM_CLASSES), torch.nan)

    def remember(self, x: Tensor, logits: Tensor) -> None:
        now = self.logits[self.current_epoch]
        ids = (x[:, 0] * 1000).round().long()
        new = now[ids].isnan().all(1)
        now[ids[new]] = logits.detach().float()[new]

    def look(self, batch: Any) -> tuple[Tensor, Tensor]:
        x, y = batch
        logits = self(x)
        self.remember(x, logits)
        return logits, y


class Functional(Remembering):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return F.cross_entropy(*self.look(batch))


class Criterion(Remembering):
    def __init__(self) -> None:
        super().__init__()
        self.criterion = nn.CrossEntropyLoss(torch.ones(NUM_CLASSES), label_smoothing=0.1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.criterion(*self.look(batch))


class Keywords(Remembering):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        logits, y = self.look(batch)
        return F.cross_entropy(target=y, input=logits, reduction="sum", label_smoothing=0.2)


class LogProbabilities(Remembering):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        logits, y = self.look(batch)
        return F.nll_loss(F.log_softmax(logits, 1), y)


class LogProbabilitiesModule(Remembering):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        logits, y = self.look(batch)
        return nn.NLLLoss()(logits.log_softmax(1), y)


class Manual(Remembering):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(F.cross_entropy(*self.look(batch)))
        optimizer.step()


class Mixup(Remembering):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        logits, y = self.look(batch)
        return 0.7 * F.cross_entropy(logits, y) + 0.3 * F.cross_entropy(logits, y.flip(0))


class AuxiliaryHeads(Remembering):
    """Three losses before the one whose shape is that of the batch."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        logits, y = self.look(batch)
        part = F.cross_entropy(logits.flip(0)[:2], y[:2])
        places = F.cross_entropy(torch.stack([logits, -logits], 2), torch.stack([y, y], 1))
        soft = F.cross_entropy(-logits, F.one_hot(y, NUM_CLASSES).float())
        return F.cross_entropy(logits, y) + 0.1 * (part + places + soft)


class Returned(Remembering):
    """A loss of its own: whoever returns logits and target needs no cross entropy."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        logits, y = self.look(batch)
        loss = F.multi_margin_loss(logits, y) + 0 * F.cross_entropy(-logits, 0 * y)
        return {"loss": loss, "logits": logits, "target": y}


class OwnLoss(Remembering):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return F.multi_margin_loss(*self.look(batch))


def ask_the_net(module: Any, batch: Any) -> tuple[Tensor, Tensor]:
    x, y = batch
    return module.net(x), y


class Closures(Functional):
    """An optimiser that runs the step several times."""

    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters(), 0.1, max_iter=3)


class Skipping(Remembering):
    """A step that looks at the loss and decides not to learn from it."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = F.cross_entropy(*self.look(batch))
        return None if batch_idx % 2 else loss


class CompiledNet(Functional):
    def __init__(self) -> None:
        super().__init__()
        self.net = torch.compile(self.net, backend="eager")


CASES: dict[str, tuple[type[Remembering], dict[str, Any], dict[str, Any]]] = {
    "functional": (Functional, {}, {}),
    "module_with_label_smoothing": (Criterion, {}, {}),
    "keywords": (Keywords, {}, {}),
    "nll_loss": (LogProbabilities, {}, {}),
    "nll_loss_module": (LogProbabilitiesModule, {}, {}),
    "manual_optimisation": (Manual, {}, {}),
    "accumulation": (Functional, {}, {"accumulate_grad_batches": 3}),
    "bf16": (Functional, {}, {"precision": "bf16-mixed"}),
    "closures": (Closures, {}, {}),
    "mixup": (Mixup, {}, {}),
    "auxiliary_heads": (AuxiliaryHeads, {}, {}),
    "returned": (Returned, {}, {}),
    "logits_fn": (OwnLoss, {"logits_fn": ask_the_net}, {}),
    "skipped_steps": (Skipping, {}, {}),
    "compiled_net": (CompiledNet, {}, {}),
}


def slow_signals(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """EL2N and correctness, one sample at a time."""
    el2n = torch.empty(logits.shape[:2])
    correct = torch.empty(logits.shape[:2], dtype=torch.bool)
    for epoch in range(len(logits)):
        for i, y in enumerate(target.tolist()):
            error = logits[epoch, i].softmax(0)
            error[y] -= 1
            el2n[epoch, i] = error.norm()
            correct[epoch, i] = int(logits[epoch, i].argmax()) == y
    return el2n, correct


def pruning(**options: Any) -> lfp.DataPruning:
    defaults = {
        "density": 0.5,
        "warmup_epochs": WARMUP,
        "score": hardness,
        "keep": "hard",
        "quota": lfp.quotas.proportional,
    }
    return lfp.DataPruning(**(defaults | options))


def check(prune: lfp.DataPruning, logits: Tensor, lost: int = 0) -> None:
    seen, target = prune.dynamics, Blobs(N).y
    assert seen is not None
    there = seen.observed
    assert int((~there).sum()) == lost
    assert torch.equal(seen.target, target)
    el2n, correct = slow_signals(logits[:WARMUP], target)
    torch.testing.assert_close(seen.signal("el2n")[there], el2n[there], atol=2e-3, rtol=0)
    assert torch.equal(seen.signal("correct")[there], correct[there])
    assert len(seen.signal("el2n").unique()) > N  # it is not one value all over


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")  # it does so on purpose
@pytest.mark.filterwarnings("ignore:8 of 53 training samples were never observed")  # skipped_steps
def test_signals_are_those_of_the_steps_own_logits(name: str) -> None:
    kind, prune_options, trainer_options = CASES[name]
    prune, model = pruning(**prune_options), kind()
    trainer = users.trainer(callbacks=[prune], max_epochs=WARMUP + 1, **trainer_options)
    trainer.fit(model, Data(**DATA))
    # The first skipped step has no graph to look at; from then on the function mode is back.
    check(prune, model.logits, lost=DATA["batch_size"] if name == "skipped_steps" else 0)
    assert prune.selection is not None


@pytest.mark.parametrize("name", ["functional", "returned", "logits_fn", "skipped_steps"])
def test_way_of_looking_is_learned_from_the_first_step(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ways: list[str] = []
    kind, prune_options, _ = CASES[name]

    class Noting(TrainingObserver):
        def read_step(self, outputs: Any, batch_size: int) -> Any:
            result = super().read_step(outputs, batch_size)
            ways.append(self._way)
            return result

    monkeypatch.setattr(_warmup, "TrainingObserver", Noting)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = users.trainer(callbacks=[pruning(**prune_options)], max_epochs=WARMUP + 1)
        trainer.fit(kind(), Data(**DATA))
    first = {"functional": "graph", "returned": "outputs", "logits_fn": "mode"}
    assert ways[0] == first.get(name, "graph")
    assert set(ways[1:]) == ({"mode"} if name == "skipped_steps" else {ways[0]})


class CompiledStep(Model):
    """Hands its logits on without a graph break."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        logits = self(x)
        return {"loss": F.cross_entropy(logits, y), "mine": logits, "x": x}


class Remember(pl.Callback):
    def __init__(self) -> None:
        self.memory = Remembering()

    def on_train_batch_end(self, trainer: Any, module: Any, out: Any, batch: Any, i: int) -> None:
        self.memory._trainer = trainer
        self.memory.remember(out["x"], out["mine"])


@pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6),
    reason="older torch compiles past function modes, and the fit says that it found no loss",
)
def test_signals_of_a_compiled_lightning_module() -> None:
    prune, remember = pruning(), Remember()
    trainer = users.trainer(callbacks=[prune, remember], max_epochs=WARMUP + 1)
    trainer.fit(torch.compile(CompiledStep(), backend="aot_eager"), Data(**DATA))
    check(prune, remember.memory.logits)


# ------------------------------------------------------------------------------------- logits_fn


class Normalised(pl.LightningModule):
    """Batch normalisation, a frozen part in eval mode, and a loss that nobody knows."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(users.DIM, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, NUM_CLASSES)
        )
        self.frozen = nn.BatchNorm1d(users.DIM)

    def on_train_epoch_start(self) -> None:
        self.frozen.eval()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        assert self.training
        assert self.net.training
        assert self.net[1].training
        assert not self.frozen.training
        x, y = batch
        return F.multi_margin_loss(self.net(self.frozen(x)), y)

    def validation_step(self, batch: Any, batch_idx: int) -> None: ...

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


def ask_in_eval_mode(module: Any, batch: Any) -> tuple[Tensor, Tensor]:
    assert not any(part.training for part in module.modules())
    assert not torch.is_grad_enabled()
    x, y = batch
    return module.net(module.frozen(x)), y


def trained(callbacks: list[Any]) -> dict[str, Tensor]:
    torch.manual_seed(3)
    model = Normalised()
    users.trainer(callbacks=callbacks, max_epochs=3).fit(model, Data(**DATA, shuffle=False))
    return model.state_dict()


def test_logits_fn_leaves_modes_and_statistics_alone() -> None:
    # With density 1 and a fixed order, training is the same as without the callback, bit for bit.
    plain = trained([])
    observed = trained([pruning(density=1.0, logits_fn=ask_in_eval_mode)])
    for name, value in plain.items():
        assert torch.equal(observed[name], value), name


def test_frozen_parts_stay_frozen_through_logits_fn_errors() -> None:
    def fail(module: Any, batch: Any) -> Any:
        raise KeyError("oh")

    model = Normalised()
    trainer = users.trainer(callbacks=[pruning(logits_fn=fail)], max_epochs=3)
    with pytest.raises(KeyError, match="oh"):
        trainer.fit(model, Data(**DATA))
    assert model.training
    assert not model.frozen.training


# --------------------------------------------------------------------------- nothing stays behind


def depth() -> int:
    return int(torch._C._len_torch_function_stack())


class Failing(Model):
    def __init__(self, stage: str, after_loss: bool) -> None:
        super().__init__()
        self.stage, self.after_loss = stage, after_loss

    def run(self, batch: Any, stage: str) -> Tensor:
        x, y = batch
        fail = stage == self.stage
        if fail and not self.after_loss:
            raise ArithmeticError(stage)
        loss = F.cross_entropy(self(x), y)
        if fail:
            raise ArithmeticError(stage)
        return loss

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.run(batch, "training")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.run(batch, "validation")


CALLBACKS: dict[str, Callable[[], list[Any]]] = {
    "both": lambda: [lfp.RecallMonitor(), lfp.DataPruning(0.5, 1)],
    "pruning": lambda: [lfp.DataPruning(0.5, 1)],
    "monitor": lambda: [lfp.RecallMonitor()],
}


@pytest.mark.parametrize("after_loss", [False, True])
@pytest.mark.parametrize("stage", ["training", "validation"])
@pytest.mark.parametrize("names", CALLBACKS)
def test_no_mode_is_left_after_an_exception(names: str, stage: str, after_loss: bool) -> None:
    callbacks = CALLBACKS[names]()
    trainer = users.trainer(callbacks=callbacks, max_epochs=3)
    with pytest.raises(ArithmeticError, match=stage):
        trainer.fit(Failing(stage, after_loss), Data(**DATA))
    assert depth() == 0
    # the same Trainer and callbacks look again in the next fit
    again = Functional()
    trainer.fit(again, Data(**DATA))
    assert depth() == 0
    for callback in callbacks:
        if isinstance(callback, lfp.DataPruning):
            assert callback.selection is not None
        else:
            assert int(callback.counts["val"].support.sum()) == 60


class Watching(Functional):
    """The mode is there in the steps that are looked into, and nowhere else."""

    def __init__(self) -> None:
        super().__init__()
        self.depths: list[tuple[str, int, int]] = []

    def note(self, where: str) -> None:
        self.depths.append((where, self.current_epoch, depth()))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.note("step")
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.note("validation")
        super().validation_step(batch, batch_idx)

    def on_after_backward(self) -> None:
        self.note("backward")

    def on_train_epoch_end(self) -> None:
        self.note("epoch_end")


def test_mode_is_active_in_the_first_step_only() -> None:
    model = Watching()
    users.trainer(callbacks=[pruning()], max_epochs=WARMUP + 1).fit(model, Data(**DATA))
    expected = {("step", epoch, 0) for epoch in range(WARMUP + 1)} | {("step", 0, 1)}
    for where in ("validation", "backward", "epoch_end"):
        expected |= {(where, epoch, 0) for epoch in range(WARMUP + 1)}
    assert set(model.depths) == expected
    assert model.depths.count(("step", 0, 1)) == 1


class CutShort(Functional):
    """A module may end an epoch before a step: the callback has opened by then."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        return -1 if batch_idx == 3 else None

    def on_train_epoch_end(self) -> None:
        assert depth() == 0


@pytest.mark.filterwarnings("ignore:.*were never observed in the warm-up")
def test_no_mode_is_left_when_the_module_ends_an_epoch() -> None:
    prune = lfp.DataPruning(0.2, 1, quota=lfp.quotas.proportional)
    users.trainer(callbacks=[prune, lfp.RecallMonitor()], max_epochs=2).fit(
        CutShort(), Data(**DATA)
    )
    assert depth() == 0


@pytest.mark.parametrize("monitor_first", [False, True])
def test_two_callbacks_share_one_look(monitor_first: bool) -> None:
    prune = pruning(quota=lfp.quotas.drop, recall_window=1, shrinkage=0.0, update_every=1)
    monitor, model = lfp.RecallMonitor(), Functional()
    callbacks: list[Any] = [monitor, prune] if monitor_first else [prune, monitor]
    trainer = users.trainer(callbacks=callbacks, max_epochs=WARMUP + 1)
    trainer.fit(model, Data(**DATA))
    check(prune, model.logits)
    counts = monitor.counts["val"]
    assert int(counts.support.sum()) == 60
    assert prune.history[-1].recall is not None
    assert torch.equal(prune.history[-1].recall, counts.recall)
    assert depth() == 0


# --------------------------------------------------------------------------------- RecallMonitor

K = 3
LABELS = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 1, 2])


class Scripted(pl.LightningModule):
    """Predicts what the script of the epoch says."""

    def __init__(self, *scripts: list[int], width: int = K) -> None:
        super().__init__()
        self.scripts, self.width = torch.tensor(scripts), width
        self.weight = nn.Parameter(torch.zeros(()))
        self.fields: dict[str, Tensor] = {}

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        _, y = batch
        return F.cross_entropy(self.weight * F.one_hot(y, self.width).float(), y)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        i, y = batch
        script = self.scripts[min(self.current_epoch, len(self.scripts) - 1)]
        F.cross_entropy(F.one_hot(script[i], self.width).float(), y)

    test_step = validation_step

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


def loader(labels: Tensor = LABELS) -> Any:
    return DataLoader(TensorDataset(torch.arange(len(labels)), labels), batch_size=4)


def slow_recalls(predictions: list[int], labels: Tensor = LABELS) -> dict[int, float]:
    right: dict[int, list[bool]] = {}
    for prediction, label in zip(predictions, labels.tolist(), strict=True):
        right.setdefault(label, []).append(prediction == label)
    return {label: sum(hits) / len(hits) for label, hits in right.items()}


MIXED = [0, 0, 0, 1, 2, 1, 1, 0, 1, 1]  # recalls 3/5, 3/4, 0/1


def test_values_are_those_of_a_slow_loop() -> None:
    monitor = lfp.RecallMonitor()
    trainer = users.trainer(callbacks=[monitor])
    (logged,) = trainer.validate(Scripted(MIXED), loader(), verbose=False)
    recalls = slow_recalls(MIXED)
    values = list(recalls.values())
    mean = sum(values) / K
    expected = {
        "val/recall/worst": min(values),
        "val/recall/gap": max(values) - min(values),
        "val/recall/mean": mean,
        "val/recall/std": (sum((v - mean) ** 2 for v in values) / K) ** 0.5,
    } | {f"val/recall/class/{k}": v for k, v in recalls.items()}
    assert logged == pytest.approx(expected)
    assert monitor.counts["val"].tp.tolist() == [3, 3, 0]
    assert monitor.counts["val"].support.tolist() == [5, 4, 1]


def test_a_real_model_is_counted_right_in_every_epoch() -> None:
    class Check(pl.Callback):
        checked = 0

        def on_validation_end(self, trainer: Any, module: Any) -> None:
            val = Blobs(60, seed=1)
            with torch.no_grad():
                predictions = module(val.x).argmax(1).tolist()
            for label, recall in slow_recalls(predictions, val.y).items():
                logged = trainer.callback_metrics[f"val/recall/class/{label}"]
                assert float(logged) == pytest.approx(recall)
            self.checked += 1

    check = Check()
    users.trainer(callbacks=[lfp.RecallMonitor(), check], max_epochs=3).fit(Model(), Data(**DATA))
    assert check.checked == 3


def test_checkpoint_keeps_the_epoch_with_the_best_worst_class(tmp_path: Any) -> None:
    # Accuracy is best in epoch 0, the worst class in epoch 1.
    scripts = [
        [0, 0, 0, 0, 0, 1, 1, 1, 1, 0],
        [0, 0, 0, 1, 1, 1, 1, 0, 0, 2],
        [0, 0, 1, 1, 1, 1, 1, 0, 0, 2],
    ]
    best = ModelCheckpoint(
        tmp_path, monitor="val/recall/worst", mode="max", filename="{epoch}", save_top_k=1
    )
    trainer = users.trainer(
        callbacks=[lfp.RecallMonitor(), best], enable_checkpointing=True, max_epochs=3
    )
    trainer.fit(Scripted(*scripts), loader(), loader())
    assert best.best_model_path.endswith("epoch=1.ckpt")
    assert float(best.best_model_score) == pytest.approx(0.5)


def test_sanity_check_is_not_logged() -> None:
    class Check(pl.Callback):
        def on_sanity_check_end(self, trainer: Any, module: Any) -> None:
            assert not any("recall" in name for name in trainer.callback_metrics)
            assert monitor.counts == {}

    monitor = lfp.RecallMonitor()
    trainer = users.trainer(callbacks=[monitor, Check()], max_epochs=1, num_sanity_val_steps=2)
    trainer.fit(Scripted(MIXED), loader(), loader())
    assert "val/recall/worst" in trainer.callback_metrics
    assert int(monitor.counts["val"].support.sum()) == len(LABELS)


def test_testing_logs_under_test() -> None:
    monitor = lfp.RecallMonitor()
    (logged,) = users.trainer(callbacks=[monitor]).test(Scripted(MIXED), loader(), verbose=False)
    assert logged["test/recall/worst"] == 0
    assert logged["test/recall/class/1"] == pytest.approx(3 / 4)
    assert not any(name.startswith("val") for name in logged)
    assert set(monitor.counts) == {"test"}


def test_class_names_and_classes_without_samples() -> None:
    names = ["cat", "dog", "owl", "yak"]
    model = Scripted([0, 0, 1, 1, 3, 1, 1, 1, 1, 3], width=4)  # no label 3 in the data
    trainer = users.trainer(callbacks=[lfp.RecallMonitor(class_names=names)])
    (logged,) = trainer.validate(model, loader(), verbose=False)
    assert logged["val/recall/class/cat"] == pytest.approx(2 / 5)
    assert logged["val/recall/class/dog"] == 1
    assert logged["val/recall/class/owl"] == 0
    assert "val/recall/class/yak" not in logged
    assert logged["val/recall/mean"] == pytest.approx((2 / 5 + 1 + 0) / 3)


def test_wrong_number_of_class_names_is_refused() -> None:
    trainer = users.trainer(callbacks=[lfp.RecallMonitor(class_names=["a", "b"])])
    with pytest.raises(ValueError, match="`class_names` must name each of 3 classes, got 2"):
        trainer.validate(Scripted(MIXED), loader(), verbose=False)


def test_second_loader_logs_under_its_number() -> None:
    labels = LABELS.flip(0)
    trainer = users.trainer(callbacks=[lfp.RecallMonitor()])
    first, second = trainer.validate(Scripted(MIXED), [loader(), loader(labels)], verbose=False)
    logged = first | second
    for prefix, recalls in (
        ("val", slow_recalls(MIXED)),
        ("val/1", slow_recalls(MIXED, labels)),
    ):
        assert logged[f"{prefix}/recall/worst"] == pytest.approx(min(recalls.values()))
        for label, recall in recalls.items():
            assert logged[f"{prefix}/recall/class/{label}"] == pytest.approx(recall)


class Memory(pl.loggers.logger.DummyLogger):
    def __init__(self) -> None:
        super().__init__()
        self.metrics: dict[str, float] = {}

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.metrics |= metrics


@pytest.mark.parametrize(("classes", "monitored"), [(100, True), (101, False)])
def test_many_classes_go_to_the_loggers_only(classes: int, monitored: bool) -> None:
    labels, logger = torch.arange(classes), Memory()
    model = Scripted((labels // 2 * 2).tolist(), width=classes)
    trainer = users.trainer(callbacks=[lfp.RecallMonitor()], logger=logger)
    (logged,) = trainer.validate(model, loader(labels), verbose=False)
    assert logged["val/recall/mean"] == pytest.approx((classes - classes // 2) / classes)
    assert ("val/recall/class/4" in logged) is monitored
    assert logger.metrics["val/recall/class/4"] == 1
    assert logger.metrics["val/recall/class/5"] == 0


def test_logits_fn_serves_the_monitor() -> None:
    def script(module: Any, batch: Any) -> tuple[Tensor, Tensor]:
        i, y = batch
        return F.one_hot(module.scripts[0][i], K).float(), y

    class NoLoss(Scripted):
        def validation_step(self, batch: Any, batch_idx: int) -> None: ...

    trainer = users.trainer(callbacks=[lfp.RecallMonitor(logits_fn=script)])
    (logged,) = trainer.validate(NoLoss(MIXED), loader(), verbose=False)
    assert logged["val/recall/class/1"] == pytest.approx(3 / 4)
    trainer = users.trainer(callbacks=[lfp.RecallMonitor()])
    with pytest.raises(ValueError, match=r"validation_step: the step returned no 'logits'"):
        trainer.validate(NoLoss(MIXED), loader(), verbose=False)


ERRORS: dict[str, tuple[Callable[[Any, Tensor, Tensor], Any], str]] = {
    "no_loss": (lambda m, z, y: z.square().mean(), "training_step: the step returned no 'logits'"),
    "soft_targets": (
        lambda m, z, y: F.cross_entropy(z, F.one_hot(y, NUM_CLASSES).float()),
        r"training_step: targets must be one class index per sample.*\[8, 4\]",
    ),
    "soft_targets_returned": (
        lambda m, z, y: {"loss": z.mean(), "logits": z, "target": F.one_hot(y).float()},
        r"training_step: logits must be \[B, C\] and targets one class index per sample",
    ),
    "dense": (
        lambda m, z, y: F.cross_entropy(torch.stack([z, z], 2), torch.stack([y, y], 1)),
        r"the loss must be given logits \[8, C\].*got logits \[8, 4, 2\]",
    ),
    "part_of_the_batch": (lambda m, z, y: F.cross_entropy(z[:5], y[:5]), "5 samples"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_step_without_readable_logits_is_named(name: str) -> None:
    loss, match = ERRORS[name]

    class Odd(Model):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            x, y = batch
            return loss(self, self(x), y)

    trainer = users.trainer(callbacks=[pruning()], max_epochs=3)
    with pytest.raises(ValueError, match=match):
        trainer.fit(Odd(), Data(**DATA))


def test_monitor_checks_the_number_of_classes() -> None:
    with pytest.raises(ValueError, match="`num_classes` must be at least 1, got 0"):
        lfp.RecallMonitor(num_classes=0)
    with pytest.raises(ValueError, match="`class_names` must name each of 3 classes, got 2"):
        lfp.RecallMonitor(num_classes=3, class_names=["a", "b"])
    trainer = users.trainer(callbacks=[lfp.RecallMonitor(num_classes=7)], max_epochs=1)
    with pytest.raises(ValueError, match="`num_classes` is 7, but the logits are for 4"):
        trainer.fit(Model(), Data(**DATA))
