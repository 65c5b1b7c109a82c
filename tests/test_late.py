"""The loss is looked for after the network, and found wherever a capture that looks all the time finds it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from lightning_fairprune._model.capture import LossCapture
from lightning_fairprune._observe import late as late_module
from lightning_fairprune._observe.late import LateCapture

TARGET = torch.tensor([2, 0])


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())
        self.head = nn.Linear(8, 3)
        self.normal = nn.BatchNorm1d(4)
        self.measure = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))

    def with_loss(self, x: torch.Tensor) -> Any:
        return Whole(self)(x)


class Whole(nn.Module):
    """Like models that compute their loss themselves."""

    def __init__(self, inner: Network) -> None:
        super().__init__()
        self.inner = [inner]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(self.inner[0](x), TARGET)


class Counting(TorchFunctionMode):
    calls = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        return func(*args, **(kwargs or {}))


def plain(net: Network, x: torch.Tensor) -> Any:
    return F.cross_entropy(net(x), TARGET)


def in_parts(net: Network, x: torch.Tensor) -> Any:
    return nn.CrossEntropyLoss()(net.head(net.body(net.normal(x))), TARGET)


def likelihood(net: Network, x: torch.Tensor) -> Any:
    logits = net(x)
    net.measure(logits)
    return F.nll_loss(logits.log_softmax(1), TARGET)


def inside(net: Network, x: torch.Tensor) -> Any:
    return net.with_loss(x)


def twice(net: Network, x: torch.Tensor) -> Any:
    return F.cross_entropy(net(x), TARGET) + F.cross_entropy(net(x + 1), TARGET)


def no_module(net: Network, x: torch.Tensor) -> Any:
    return F.cross_entropy(x @ net.head.weight[:, :4].T, TARGET)


def under_a_mode(net: Network, x: torch.Tensor) -> Any:
    with torch.device("cpu"):
        logits = net(x)
    return F.cross_entropy(logits, TARGET)


STEPS: dict[str, tuple[Callable[[Network, torch.Tensor], Any], str | None]] = {
    "plain": (plain, "Network"),
    "in parts": (in_parts, "Sequential"),
    "likelihood": (likelihood, "Network"),
    "loss inside a module": (inside, "Network"),
    "twice": (twice, "Network"),
    "no module": (no_module, None),
    "under a mode": (under_a_mode, None),
}


@pytest.fixture
def capture(monkeypatch: pytest.MonkeyPatch) -> Iterator[LateCapture]:
    # Other tests of this process may have compiled something.
    monkeypatch.setattr(late_module, "_has_compiled", lambda: False)
    late = LateCapture()
    yield late
    late.leave()


def run(
    capture: LateCapture, batch_idx: int, net: Network | None = None, step: Any = plain
) -> None:
    x = torch.randn(2, 4)
    capture.begin(batch_idx)
    step(net or Network(), x)
    capture.leave()


@pytest.mark.parametrize("name", STEPS)
@torch.no_grad()
def test_steps_after_the_first_show_the_same_as_a_mode_all_the_time(
    name: str, capture: LateCapture
) -> None:
    step, after = STEPS[name]
    net, always = Network().eval(), LossCapture()
    run(capture, 1, net, step)
    assert (type(capture.after).__name__ if after else capture.after) == after
    for _ in range(3):
        x = torch.randn(2, 4)
        seen = []
        for one, begin in ((always, always.enter), (capture, partial(capture.begin, 2))):
            begin()
            step(net, x)
            one.leave()
            seen.append(one.pick(2))
        assert torch.equal(seen[0][0], seen[1][0])
        assert torch.equal(seen[1][1], TARGET)
        assert capture.noted == always.noted
        assert not net._forward_hooks


@torch.no_grad()
def test_functions_of_the_network_run_without_the_mode(
    capture: LateCapture, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def counted(self: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        seen.append(func)
        return whole(self, func, types, args, kwargs)

    whole = LossCapture.__torch_function__
    monkeypatch.setattr(LossCapture, "__torch_function__", counted)
    net, counts = Network().eval(), []
    for batch_idx in range(3):
        seen.clear()
        run(capture, batch_idx, net)
        counts.append(len(seen))
    assert counts == [6, 6, 1]  # 3 linear, 2 relu, the loss; the loss


def test_traced_modules_are_looked_at_all_the_time(capture: LateCapture) -> None:
    net, x = Network().eval(), torch.randn(2, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and still in use
        traced = torch.jit.trace(net, x)
    for batch_idx in (1, 2):
        capture.begin(batch_idx)
        F.cross_entropy(traced(x), TARGET)
        capture.leave()
        assert torch.equal(capture.pick(2)[1], TARGET)
    assert capture.after is None


def test_compiled_code_is_looked_at_all_the_time(
    capture: LateCapture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(late_module, "_has_compiled", lambda: True)
    net = Network()  # one that is gone would not be waited for anyway
    run(capture, 1, net)
    assert capture.after is None


def test_each_first_step_is_learnt_from_anew(capture: LateCapture) -> None:
    net, after = Network(), []
    for step in (plain, no_module, in_parts):
        run(capture, 1, net, step)
        after.append(capture.after)
    assert after == [net, None, net.body]


def test_a_module_that_is_gone_is_not_waited_for(capture: LateCapture) -> None:
    run(capture, 1)
    assert capture.after is None
    run(capture, 2)
    assert capture.noted == 1


def test_training_steps_in_between_change_nothing(capture: LateCapture) -> None:
    net = Network()
    for batch_idx in (0, 1, 2, 3):
        run(capture, batch_idx, net)
        assert capture.noted == 1
        capture.leave()  # once too often
    capture.enter()  # as in training
    plain(net, torch.randn(2, 4))
    capture.leave()
    assert capture.noted == 1
    assert capture.after is net


def test_a_mode_of_the_step_is_left_alone(capture: LateCapture) -> None:
    net, x = Network(), torch.randn(2, 4)
    run(capture, 1, net)
    capture.begin(2)
    with Counting() as counting:
        plain(net, x)
    assert counting.calls > 0
    capture.leave()
    told = "looked for after Network was done, as in the second batch"
    with pytest.raises(ValueError, match=told):
        capture.pick(2)


@pytest.mark.parametrize("batch_idx", [0, 1, 2])
def test_a_step_that_fails_leaves_nothing_behind(batch_idx: int, capture: LateCapture) -> None:
    net = Network()
    run(capture, 1, net)
    capture.begin(batch_idx)
    with pytest.raises(RuntimeError):
        plain(net, torch.randn(2, 5))
    capture.leave()
    assert not net._forward_hooks
    run(capture, 1, net)
    assert capture.after is net
