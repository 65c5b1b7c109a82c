from __future__ import annotations

import math

import oracles_scores
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_fairprune import signals

every_signal = pytest.mark.parametrize("name", signals.__all__)


def random_batch(b: int = 64, c: int = 7, dtype: torch.dtype = torch.float32):
    generator = torch.Generator().manual_seed(3)
    logits = 4 * torch.randn(b, c, generator=generator, dtype=torch.float64)
    return logits.to(dtype), torch.randint(c, (b,), generator=generator)


def test_values_checked_by_hand():
    # probabilities (1/4, 3/4) with the first class true
    logits, target = torch.tensor([[1.0, 3.0]], dtype=torch.float64).log(), torch.tensor([0])
    expected = {
        "loss": math.log(4),
        "el2n": math.hypot(0.75, 0.75),
        "p_true": 0.25,
        "margin": -math.log(3),
        "entropy": 0.25 * math.log(4) + 0.75 * math.log(4 / 3),
        "correct": False,
        "rival": 1.0,
    }
    for name, value in signals.compute(signals.__all__, logits, target).items():
        assert value.item() == pytest.approx(expected[name], abs=1e-15), name


@every_signal
@given(data=st.data())
@settings(max_examples=20, deadline=None, database=None)
def test_equals_the_slow_loop(name, data):
    c = data.draw(st.integers(1, 5))
    value = st.floats(-30, 30, allow_nan=False)
    rows = data.draw(st.lists(st.lists(value, min_size=c, max_size=c), min_size=1, max_size=4))
    target = data.draw(st.lists(st.integers(0, c - 1), min_size=len(rows), max_size=len(rows)))
    got = getattr(signals, name)(torch.tensor(rows, dtype=torch.float64), torch.tensor(target))
    oracle = getattr(oracles_scores, f"signal_{name}")
    expected = [oracle(z, y) for z, y in zip(rows, target, strict=True)]
    # The oracle's 1 - p_y loses the digits that el2n keeps, hence the absolute tolerance.
    assert got.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@every_signal
@pytest.mark.parametrize("given", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_computes_in_float32_at_least(name, given):
    dtype = torch.float64 if given == torch.float64 else torch.float32
    logits, target = random_batch(dtype=given)
    got = getattr(signals, name)(logits, target)
    wide = getattr(signals, name)(logits.to(dtype), target)
    assert got.shape == target.shape
    assert got.dtype == (torch.bool if name == "correct" else dtype)
    assert torch.equal(got, wide)


@every_signal
def test_carries_no_gradient_and_leaves_the_logits_alone(name):
    logits, target = random_batch()
    before = logits.clone()
    assert not getattr(signals, name)(logits.requires_grad_(), target).requires_grad
    assert torch.equal(logits, before)


@every_signal
def test_empty_batch(name):
    got = getattr(signals, name)(torch.empty(0, 3), torch.empty(0, dtype=torch.int64))
    assert got.shape == (0,)


def test_single_class():
    got = signals.compute(signals.__all__, torch.tensor([[2.5]]), torch.tensor([0]))
    expected = dict.fromkeys(("el2n", "entropy", "loss"), 0.0)
    expected |= {"correct": True, "rival": 0.0, "margin": math.inf, "p_true": 1.0}
    assert {name: value.item() for name, value in got.items()} == expected


def test_el2n_keeps_its_digits_close_to_zero():
    logits = torch.tensor([[40.0, 0.0], [60.0, 0.0]])
    expected = [math.sqrt(2) * math.exp(-40), math.sqrt(2) * math.exp(-60)]
    assert signals.el2n(logits, torch.tensor([0, 0])).tolist() == pytest.approx(expected, rel=1e-5)


def test_impossible_classes_leave_the_entropy_finite():
    logits = torch.tensor([[0.0, 0.0, -torch.inf], [0.0, -1e30, -torch.inf]])
    got = signals.entropy(logits, torch.tensor([0, 0]))
    assert got.tolist() == pytest.approx([math.log(2), 0.0])


def test_of_equal_logits_the_first_wins():
    logits = torch.zeros(2, 3)
    assert signals.correct(logits, torch.tensor([0, 1])).tolist() == [True, False]


@every_signal
def test_compute_gives_what_the_function_gives(name):
    logits, target = random_batch()
    together = signals.compute(signals.__all__, logits, target)
    assert list(together) == signals.__all__
    assert torch.equal(together[name], getattr(signals, name)(logits, target))


def test_compute_takes_no_name_at_all():
    assert signals.compute((), *random_batch()) == {}


def test_compute_takes_one_softmax(monkeypatch):
    calls, original = [], torch.Tensor.log_softmax
    counted = lambda z, dim: calls.append(dim) or original(z, dim)  # noqa: E731
    monkeypatch.setattr(torch.Tensor, "log_softmax", counted)
    signals.compute(["margin", "correct"], *random_batch())
    assert calls == []
    signals.compute(signals.__all__, *random_batch())
    assert calls == [1]


def test_narrow_integer_targets_are_taken():
    logits, target = random_batch()
    assert torch.equal(signals.loss(logits, target.to(torch.int32)), signals.loss(logits, target))


def test_unknown_name():
    with pytest.raises(ValueError, match=r"`names` must be among 'correct', .*, got 'el3n'"):
        signals.compute(["el3n"], *random_batch())


@every_signal
@pytest.mark.parametrize("shapes", [((4, 3, 2), (4,)), ((4, 3), (5,)), ((4, 3), (4, 3))])
def test_shapes_that_disagree(name, shapes):
    logits, target = shapes
    told = r"`logits` must be \[B, C\] and `target` \[B\], got shapes"
    with pytest.raises(ValueError, match=told):
        getattr(signals, name)(torch.zeros(logits), torch.zeros(target, dtype=torch.int64))


@every_signal
def test_dtypes_that_do_not_fit(name):
    function = getattr(signals, name)
    with pytest.raises(TypeError, match=r"`logits` must be floating, got torch\.int64"):
        function(torch.zeros(2, 2, dtype=torch.int64), torch.zeros(2, dtype=torch.int64))
    told = r"`target` must be integer class indices, got torch\.float"
    with pytest.raises(TypeError, match=told):
        function(torch.zeros(2, 2), torch.zeros(2))


@every_signal
def test_never_asks_the_device_for_a_value(name):
    # Tensors on "meta" have no values: whatever would make the host wait for a device fails on them.
    logits = torch.empty(4, 3, device="meta")
    target = torch.empty(4, dtype=torch.int64, device="meta")
    assert getattr(signals, name)(logits, target).shape == (4,)
