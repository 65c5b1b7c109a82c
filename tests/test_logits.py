"""Logits and targets come out of modules that nobody changed, and nothing stays behind."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from typing import Any
from weakref import ref

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
import users
from torch import Tensor, nn
from users import NUM_CLASSES, Blobs, Data, Model

import lightning_fairprune as lfp
from lightning_fairprune._observe import warmup as _warmup
from lightning_fairprune._observe.observer import TrainingObserver

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


class Manual(Remembering):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(F.cross_entropy(*self.look(batch)))
        optimizer.step()


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
    "manual_optimisation": (Manual, {}, {}),
    "accumulation": (Functional, {}, {"accumulate_grad_batches": 3}),
    "bf16": (Functional, {}, {"precision": "bf16-mixed"}),
    "closures": (Closures, {}, {}),
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


def test_an_exception_in_the_first_step_leaves_no_tensor_behind() -> None:
    alive: list[Any] = []

    class Fails(Functional):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            logits, y = self.look(batch)
            alive.append(ref(logits))
            F.cross_entropy(logits, y)
            raise ArithmeticError

    prune = pruning()
    with pytest.raises(ArithmeticError):
        users.trainer(callbacks=[prune], max_epochs=3).fit(Fails(), Data(**DATA))
    gc.collect()
    assert alive[0]() is None
    assert prune.selection is None


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
    expected = {("step", epoch, 0) for epoch in range(WARMUP + 1)} | {("step", 0, 2)}
    for where in ("validation", "backward", "epoch_end"):
        expected |= {(where, epoch, 0) for epoch in range(WARMUP + 1)}
    assert set(model.depths) == expected
    assert model.depths.count(("step", 0, 2)) == 1


class CutShort(Functional):
    """A module may end an epoch before a step: the callback has opened by then."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        return -1 if batch_idx == 3 else None

    def on_train_epoch_end(self) -> None:
        assert depth() == 0


@pytest.mark.filterwarnings("ignore:.*keep no sample")
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


ERRORS: dict[str, tuple[Callable[[Any, Tensor, Tensor], Any], str]] = {
    "no_loss": (lambda m, z, y: z.square().mean(), "training_step: the step returned no 'logits'"),
    "soft_targets_returned": (
        lambda m, z, y: {"loss": z.mean(), "logits": z, "target": F.one_hot(y).float()},
        r"training_step: logits must be \[B, C\] and targets one class index per sample",
    ),
    "dense": (
        lambda m, z, y: F.cross_entropy(
            torch.stack([z @ torch.eye(NUM_CLASSES)] * 2, 2), torch.stack([y, y], 1)
        ),
        r"each sample has labels of shape \[2\], and quotas need one class for each: .*`group_by`",
    ),
    "part_of_the_batch": (
        lambda m, z, y: F.cross_entropy(z[:5] @ torch.eye(NUM_CLASSES), y[:5]),
        "5 samples of a batch with 8 indices",
    ),
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
