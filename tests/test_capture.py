"""The mode that reads logits and targets out of the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_fairprune._model.capture import LossCapture, from_graph

LOGITS = torch.tensor([[2.0, 0.0, 1.0], [0.5, 0.25, -1.0]])
TARGET = torch.tensor([2, 0])


@pytest.fixture
def capture() -> Iterator[LossCapture]:
    mode = LossCapture()
    yield mode
    mode.leave()


def depth() -> int:
    return int(torch._C._len_torch_function_stack())


def looked_at(capture: LossCapture, step: Callable[[], Any]) -> Any:
    capture.enter()
    try:
        return step()
    finally:
        capture.leave()


CALLS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "function": F.cross_entropy,
    "keywords": lambda z, y: F.cross_entropy(target=y, input=z),
    "mixed": lambda z, y: F.cross_entropy(z, target=y, reduction="sum"),
    "weight": lambda z, y: F.cross_entropy(z, y, torch.ones(3)),
    "smoothing": lambda z, y: F.cross_entropy(z, y, label_smoothing=0.3),
    "module": nn.CrossEntropyLoss(),
    "nll": lambda z, y: F.nll_loss(z, y),
    "nll_module": nn.NLLLoss(reduction="none"),
}


@pytest.mark.parametrize("name", CALLS)
def test_every_way_to_call_the_loss_is_seen(name: str, capture: LossCapture) -> None:
    looked_at(capture, lambda: CALLS[name](LOGITS, TARGET))
    logits, target = capture.pick(2)
    assert torch.equal(logits, LOGITS)  # and not the log-probabilities inside of cross_entropy
    assert torch.equal(target, TARGET)


def test_looking_changes_neither_loss_nor_gradient(capture: LossCapture) -> None:
    def loss_and_gradient() -> tuple[Tensor, Tensor]:
        z = LOGITS.clone().requires_grad_()
        loss = F.cross_entropy(3 * z, TARGET, label_smoothing=0.1)
        (gradient,) = torch.autograd.grad(loss, z)
        return loss.detach(), gradient

    plain, seen = loss_and_gradient(), looked_at(capture, loss_and_gradient)
    assert torch.equal(plain[0], seen[0])
    assert torch.equal(plain[1], seen[1])
    assert not capture.pick(2)[0].requires_grad


def test_first_call_that_fits_counts(capture: LossCapture) -> None:
    def step() -> None:
        F.cross_entropy(LOGITS[:1], TARGET[:1])  # a part of the batch
        F.cross_entropy(LOGITS.T[:2, :, None].expand(2, 2, 5), torch.zeros(2, 5).long())  # dense
        F.cross_entropy(LOGITS, F.one_hot(TARGET, 3).float())  # soft
        F.cross_entropy(LOGITS, TARGET)
        F.cross_entropy(-LOGITS, TARGET)

    looked_at(capture, step)
    assert torch.equal(capture.pick(2)[0], LOGITS)
    assert len(capture.pick(None)[0]) == 1


def test_nothing_is_seen_before_and_after(capture: LossCapture) -> None:
    F.cross_entropy(-LOGITS, TARGET)
    looked_at(capture, lambda: F.cross_entropy(LOGITS, TARGET))
    F.cross_entropy(-LOGITS, TARGET)
    assert torch.equal(capture.pick(2)[0], LOGITS)


def test_each_step_forgets_the_one_before(capture: LossCapture) -> None:
    looked_at(capture, lambda: F.cross_entropy(LOGITS, TARGET))
    looked_at(capture, lambda: LOGITS.exp())
    with pytest.raises(ValueError, match="never called"):
        capture.pick(2)


def test_entering_twice_is_entering_once(capture: LossCapture) -> None:
    for _ in range(2):
        capture.enter()
        F.cross_entropy(LOGITS, TARGET)
        assert (depth(), capture.noted) == (1, 1)
    for _ in range(2):
        capture.leave()
        assert depth() == 0
    assert torch.equal(capture.pick(2)[0], LOGITS)


ERRORS: dict[str, tuple[Callable[[], Any], int | None, str]] = {
    "no_loss": (
        lambda: F.mse_loss(LOGITS, LOGITS),
        2,
        "never called .*cross_entropy .*`logits_fn`",
    ),
    "soft": (
        lambda: F.cross_entropy(LOGITS, LOGITS.softmax(1)),
        2,
        r"one class index per sample, got class probabilities of shape \[2, 3\]",
    ),
    "dense": (
        lambda: F.cross_entropy(LOGITS[:, :, None], TARGET[:, None]),
        2,
        r"logits \[2, C\].*got logits \[2, 3, 1\] and targets \[2, 1\]",
    ),
    "dense_of_any_size": (
        lambda: F.cross_entropy(LOGITS[:, :, None], TARGET[:, None]),
        None,
        r"logits \[B, C\]",
    ),
    "other_size": (
        lambda: F.cross_entropy(LOGITS, TARGET),
        3,
        "saw 2 samples of a batch with 3 indices",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_message_says_what_was_seen_instead(name: str, capture: LossCapture) -> None:
    step, batch_size, match = ERRORS[name]
    looked_at(capture, step)
    with pytest.raises(ValueError, match=match):
        capture.pick(batch_size)


# ------------------------------------------------------------------------------------- the graph


def losses(logits: Tensor, target: Tensor) -> dict[str, Tensor]:
    smooth = F.cross_entropy(logits, target, label_smoothing=0.1)
    each = F.cross_entropy(logits, target, reduction="none")
    return {
        "plain": F.cross_entropy(logits, target),
        "module": torch.nn.CrossEntropyLoss()(logits, target),
        "accumulated": F.cross_entropy(logits, target) / 3,
        "scaled": 65536.0 * F.cross_entropy(logits, target),
        "smoothed": smooth,
        "weighted": F.cross_entropy(logits, target, weight=torch.rand(logits.shape[1])),
        "focal": ((1 - torch.exp(-each)) ** 2 * each).mean(),
        "with_penalty": F.cross_entropy(logits, target) + 0.1 * logits.square().mean(),
        "nll": F.nll_loss(logits.log_softmax(1), target),
        "mixup": 0.7 * F.cross_entropy(logits, target)
        + 0.3 * F.cross_entropy(logits, target.flip(0)),
    }


@pytest.mark.parametrize("name", losses(torch.rand(2, 3), torch.tensor([0, 1])))
def test_graph_shows_what_the_loss_was_given(name: str) -> None:
    weight = torch.randn(4, 5, requires_grad=True)
    logits, target = torch.randn(6, 4) @ weight, torch.randint(5, (6,))
    loss = losses(logits, target)[name]
    seen = from_graph(loss, 6)
    assert not seen[0].requires_grad
    assert torch.equal(seen[1], target)
    torch.testing.assert_close(seen[0], logits.detach().log_softmax(1))
    loss.backward()  # looking changes nothing
    assert weight.grad is not None


def test_graph_of_another_loss_or_batch_shows_nothing() -> None:
    logits, target = torch.randn(6, 5, requires_grad=True), torch.randint(5, (6,))
    assert from_graph(F.cross_entropy(logits, target), 7) is None
    assert from_graph(F.cross_entropy(logits, F.one_hot(target, 5).float()), 6) is None
    assert from_graph(logits.square().mean(), 6) is None
    assert from_graph(torch.tensor(1.0), 6) is None
    deep = logits
    for _ in range(500):
        deep = deep + 1
    assert from_graph(deep.sum(), 6) is None
