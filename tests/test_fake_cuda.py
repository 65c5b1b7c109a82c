"""What runs in every step, on tensors of a GPU that is not there.

`FakeTensorMode` makes tensors that have a device and a shape and no values. Whatever asks for a value, as a host
that waits for the device does, raises, and so does what mixes devices. It lets some of both pass, which `Strict`
adds. Backward passes need the device itself, so gradients are made up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import users
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

import lightning_fairprune as lfp
from lightning_fairprune import metrics, signals, weighting
from lightning_fairprune._observe.recorder import EpochRecorder
from lightning_fairprune._observe.warmup import WarmUp
from lightning_fairprune.callbacks._weights.masks import MaskedWeights
from lightning_fairprune.counts import Tally, count

BATCH, CLASSES, STEPS = 32, users.NUM_CLASSES, 40  # twice through the batches that wait, and more


class Waits(RuntimeError):
    """The host would wait for the device."""


WAITING = (Waits, DataDependentOutputException, DynamicOutputShapeException)


class Mixes(RuntimeError):
    """Tensors of the device and of the host are given to one function."""


class Strict(TorchDispatchMode):
    """Raises for copies that the host waits for, and for indices and values that are on another device."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        given = [v for v in tree_flatten((args, kwargs))[0] if isinstance(v, Tensor)]
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            to = [v.device.type for v in tree_flatten(found)[0] if isinstance(v, Tensor)]
            of = args[1] if func is torch.ops.aten.copy_.default else args[0]
            if {of.device.type} != set(to) and not _in_background(func, args, kwargs):
                raise Waits(f"a copy from {of.device.type} to {to[0]}")
        elif len({v.device.type for v in given if v.ndim}) > 1:
            raise Mixes(f"{func} of tensors on devices {[v.device.type for v in given]}")
        return found


def _in_background(func: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether a copy is to the device and does not wait."""
    if func is torch.ops.aten.copy_.default:
        return args[0].is_cuda and bool(kwargs.get("non_blocking", len(args) > 2 and args[2]))
    return not args[0].is_cuda and bool(kwargs.get("non_blocking", False))


@contextmanager
def cuda() -> Iterator[None]:
    with FakeTensorMode(), Strict():
        yield


class Trainer:
    """What callbacks read of a Trainer in a step."""

    def __init__(self, fn: str = "fit") -> None:
        self.strategy = SimpleNamespace(root_device=torch.device("cuda"))
        self.state = SimpleNamespace(fn=fn)
        self.num_val_batches = [STEPS]
        self.val_dataloaders: Any = None
        self.testing = self.sanity_checking = self.evaluating = False
        self.current_epoch = self.global_step = 0
        self.world_size = 1
        self.precision = "32-true"
        self.callbacks: list[Any] = []
        loop = SimpleNamespace(_combined_loader=None)
        self.fit_loop = SimpleNamespace(epoch_loop=SimpleNamespace(val_loop=loop))
        self.validate_loop = self.test_loop = loop


class Model(users.Model):
    """Takes its first step on the host, where a fit may wait to compare ways to the logits; then it moves."""

    def to_device(self) -> None:
        # `to` fails on fake tensors.
        for part in self.modules():
            for name, value in list(part._parameters.items()):
                if value is not None:
                    moved = torch.empty(value.shape, dtype=value.dtype, device="cuda")
                    part._parameters[name] = nn.Parameter(moved)

    def log(self, *_: Any, **__: Any) -> None:
        pass


def batch(device: str = "cuda") -> tuple[Tensor, Tensor]:
    target = torch.zeros(BATCH, dtype=torch.int64, device=device)
    return torch.randn(BATCH, users.DIM, device=device), target


# ------------------------------------------------------------------------------------- the rehearsal can fail


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x.to("cpu", non_blocking=True),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: bool((x > 0).any()),
        lambda x: torch.empty(3).copy_(x),
        lambda x: torch.ones(3).to(x.device),
        lambda x: x.copy_(torch.ones(3)),
        lambda x: torch.tensor([1.0, 2.0], device="cuda").add_(torch.tensor([1.0]).to("cuda")),
    ],
)
def test_waiting_is_noticed(wait: Callable[[Tensor], Any]) -> None:
    with cuda():
        x = torch.zeros(3, device="cuda")
        with pytest.raises(WAITING):
            wait(x)


@pytest.mark.parametrize(
    "mix",
    [
        lambda x, i: x[i],
        lambda x, i: x + i,
        lambda x, i: x.gather(0, i),
        lambda x, i: x.index_add_(0, i, x),
        lambda x, i: torch.cat([x, i]),
        lambda x, i: x.index_put_((i,), x),
    ],
)
def test_mixing_is_noticed(mix: Callable[[Tensor, Tensor], Any]) -> None:
    with cuda():
        x, i = torch.zeros(3, device="cuda"), torch.zeros(3, dtype=torch.int64)
        with pytest.raises(RuntimeError, match=r"(?i)device"):
            mix(x, i)


def test_what_is_fine_passes() -> None:
    with cuda():
        x = torch.zeros(3, device="cuda")
        assert (x[torch.zeros(3, dtype=torch.int64, device="cuda")] + 1).is_cuda
        assert torch.ones(3).to("cuda", non_blocking=True).is_cuda
        assert (x * torch.tensor(2.0)).is_cuda  # a number is no tensor of the host
        assert len(x) == 3


# ------------------------------------------------------------------------------------------- functions


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_signals(dtype: torch.dtype) -> None:
    with cuda():
        logits = torch.randn(BATCH, CLASSES, device="cuda", dtype=dtype)
        found = signals.compute(signals.__all__, logits, batch()[1])
        assert all(value.is_cuda for value in found.values())


def test_counts() -> None:
    with cuda():
        tally = Tally(1)
        for _ in range(STEPS):
            logits, target = torch.randn(BATCH, CLASSES, device="cuda"), batch()[1]
            tally.update(logits, target, target)
        assert tally.slots("cuda").is_cuda
        tp, support = count(logits.argmax(1), target, CLASSES)
        assert tp.is_cuda
        assert support.is_cuda


def test_weighted_losses() -> None:
    with cuda():
        logits = torch.randn(BATCH, CLASSES, device="cuda")
        assert weighting.corrected_targets(logits, batch()[1]).is_cuda


# --------------------------------------------------------------------------------------------- metrics


def _metrics() -> list[Any]:
    reference = torch.full((CLASSES,), 0.5)
    options: dict[str, dict[str, Any]] = {"WorstKRecall": {"k": 2}, "RecallCVaR": {"level": 0.5}}
    for name in ("RecallDistortion", "RecallRetention"):
        options[name] = {"reference": reference}
    for name in ("AdjustedRecallChange", "MaxDisparity", "ClassIntensification"):
        options[name] = {"reference": reference, "reference_accuracy": 0.5}
    options["IntensificationRatio"] = options["MaxDisparity"]
    kinds = [kind for name in metrics.__all__ if isinstance(kind := getattr(metrics, name), type)]
    return [
        kind() if kind is metrics.Churn else kind(CLASSES, **options.get(kind.__name__, {}))
        for kind in kinds
    ]


def _move(metric: Any) -> None:
    """As `to` would, which fails on fake tensors."""
    for name in metric._defaults:
        state = getattr(metric, name)
        if isinstance(state, list):  # empty; what is put in has a device of its own
            continue
        setattr(metric, name, torch.zeros(state.shape, dtype=state.dtype, device="cuda"))


@pytest.mark.parametrize("metric", _metrics(), ids=lambda metric: type(metric).__name__)
def test_metrics(metric: Any) -> None:
    with cuda():
        _move(metric)
        for _ in range(3):
            metric.update(torch.randn(BATCH, CLASSES, device="cuda"), batch()[1])
        states = [getattr(metric, name) for name in metric._defaults]
        flat = [
            part for state in states for part in (state if isinstance(state, list) else [state])
        ]
        assert flat
        assert all(part.is_cuda for part in flat)


@pytest.mark.parametrize(
    "options", [{"ignore_index": 0}, {"top_k": 2}, {"num_attributes": 3}, {"class_names": "abcd"}]
)
def test_options_of_metrics(options: dict[str, Any]) -> None:
    metric = metrics.ClassRecall(CLASSES, **options)
    with cuda():
        _move(metric)
        target = batch()[1]
        attribute = (target,) if "num_attributes" in options else ()
        metric.update(torch.randn(BATCH, CLASSES, device="cuda"), target, *attribute)


# ----------------------------------------------------------------------------------------------- steps


@pytest.mark.parametrize("names", [(), ("el2n",), tuple(signals.__all__)], ids=len)
@pytest.mark.parametrize("grouped", [False, True])
def test_recorder(names: tuple[str, ...], grouped: bool) -> None:
    with cuda():
        recorder = EpochRecorder(1000, names, grouped=grouped, device="cuda")
        for _ in range(STEPS):
            x, target = batch()
            recorder.update(target, x[:, :CLASSES], target, target if grouped else None)


class Returns(Model):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        logits = self(x)
        return {"loss": F.cross_entropy(logits, y), "logits": logits, "target": y}


class ByHand(Model):
    """Calls `backward` itself: each step is observed by the function mode, not by the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


class Adjusted(Model):
    """Gives the loss other logits than the network's."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        return F.cross_entropy(self(x) + torch.arange(CLASSES, device=x.device), y)

    validation_step = training_step


class MixedUp(Model):
    """Mixes the batch, so that the loss is given class probabilities."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        soft = F.one_hot(y, CLASSES).float()
        return F.cross_entropy(self((x + x.flip(0)) / 2), (soft + soft.flip(0)) / 2)


class Warming:
    """A warm-up, and the steps of a fit in it."""

    def __init__(self, model: Any, group_by: int | None) -> None:
        trainer: Any = Trainer()
        trainer.strategy.root_device = torch.device("cpu")
        self.source: Any = SimpleNamespace(num_samples=1000, indices=None)
        self.model, self.trainer, model.trainer = model, trainer, trainer
        score = lfp.scores.el2n
        self.warm_up = WarmUp(trainer, self.source, 2, score=score, group_by=group_by)

    def to_device(self) -> None:
        self.model.to_device()
        self.warm_up.recorder.release()
        self.warm_up.recorder.to("cuda")

    def step(self, i: int, device: str = "cuda") -> None:
        given = batch(device)
        self.source.indices = given[1]
        self.warm_up.before_step(self.model, given)
        outputs = self.model.training_step(given, i)
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        if self.model.automatic_optimization:
            self.warm_up.before_backward(self.model, loss)
        outputs = outputs if isinstance(outputs, dict) else {"loss": outputs.detach()}
        self.warm_up.after_step(self.model, outputs, given)


@pytest.mark.parametrize(
    "kind", [Model, Returns, ByHand, Adjusted, MixedUp], ids=lambda kind: kind.__name__
)
@pytest.mark.parametrize("group_by", [None, 1])
def test_training_steps(kind: Any, group_by: int | None) -> None:
    warming = Warming(kind(), group_by)
    warming.step(0, "cpu")
    warming.warm_up.finish_epoch(0)
    with cuda():
        warming.to_device()
        for i in range(1, STEPS):
            warming.step(i)


@pytest.mark.parametrize("kind", [Model, Adjusted], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("group_by", [None, 1])
def test_validation_steps(kind: Any, group_by: int | None) -> None:
    monitor = lfp.RecallMonitor(group_by=group_by)
    _validate(monitor, kind(), lambda model, given, i: model.validation_step(given, i))


def test_validation_steps_that_only_update_a_metric() -> None:
    class Metered(Model):
        def __init__(self) -> None:
            super().__init__()
            self.recall = metrics.ClassRecall(CLASSES)

        def to_device(self) -> None:
            super().to_device()
            _move(self.recall)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.recall.update(self(batch[0]), batch[1])

    _validate(
        lfp.RecallMonitor(), Metered(), lambda model, given, i: model.validation_step(given, i)
    )


def test_validation_steps_with_logits_fn() -> None:
    def logits_fn(module: Any, given: Any) -> tuple[Tensor, Tensor]:
        return module(given[0]), given[1]

    _validate(lfp.RecallMonitor(logits_fn=logits_fn), Model(), lambda *_: None)


def test_deliberate_wait_in_a_step_is_noticed() -> None:
    def step(model: Any, given: Any, i: int) -> Any:
        model.validation_step(given, i)
        return {"sum": model(given[0]).sum().item()}

    with pytest.raises(DataDependentOutputException):
        _validate(lfp.RecallMonitor(), Model(), step)


def _validate(callback: Any, model: Any, step: Callable[..., Any]) -> None:
    trainer: Any = Trainer()
    trainer.callbacks, model.trainer = [callback], trainer

    def validate(i: int, device: str = "cuda") -> None:
        given = batch(device)
        callback.on_validation_batch_start(trainer, model, given, i)
        outputs = step(model, given, i)
        callback.on_validation_batch_end(trainer, model, outputs, given, i)

    try:
        callback.on_validation_start(trainer, model)
        validate(0, "cpu")
        # The counts of a device are of one device: they start again there, the way to the logits does not.
        callback.on_validation_start(trainer, model)
        with cuda():
            model.to_device()
            for i in range(1, STEPS):
                validate(i)
    finally:
        callback.on_exception(trainer)


def test_class_weighting() -> None:
    class Weighted(Model):
        def __init__(self) -> None:
            super().__init__()
            self.criterion = nn.CrossEntropyLoss()

    callback, trainer, model = lfp.ClassWeighting(), Trainer(), Weighted()
    given: Any = trainer, model
    trainer.enable_validation = True  # type: ignore[attr-defined]
    callback.setup(*given, "fit")
    callback.on_fit_start(*given)
    with cuda():
        model.to_device()
        weight = torch.ones(CLASSES, device="cuda")
        callback.load_state_dict(callback.state_dict() | {"weight": weight})
        for i in range(3):
            x, y = batch()
            callback.on_train_batch_start(*given, (x, y), i)
            assert model.criterion.weight is not None
            model.criterion(model(x), y)
            callback.on_train_batch_end()
            assert model.criterion.weight is None


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_masks_after_a_step(optimizer: Any) -> None:
    model = Model()
    with cuda():
        model.to_device()
        steps = optimizer(model.parameters(), lr=0.1)
        removed = MaskedWeights(model, [steps])
        removed.set({"net.0.weight": torch.zeros(16, users.DIM, dtype=torch.bool, device="cuda")})
        for _ in range(3):
            for parameter in model.parameters():
                parameter.grad = torch.randn_like(parameter)
            removed.zero_gradients(steps)
            steps.step()
        assert model.net[0].weight.is_cuda
