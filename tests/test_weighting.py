"""Weights by class difficulty and by the dense model's outputs, held to slow loops and known numbers."""

from __future__ import annotations

import inspect
import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_fairprune import weighting

NAN = float("nan")
OF_CLASSES = [weighting.cdb_w, weighting.cdb_w_drop]
OF_SAMPLES = [weighting.performance_weights, weighting.corrected_targets]


def slow_cdb_w(recall: list[float], tau: float | str = "dynamic") -> list[float]:
    known = [a for a in recall if not math.isnan(a)]
    if tau == "dynamic":
        bias = max(known) / (min(known) + 0.01) - 1
        tau = 2 / (1 + math.exp(-bias))
    assert isinstance(tau, int | float)
    total = 0.0
    for a in known:
        total += (1 - a) ** tau
    weights = []
    for a in recall:
        if math.isnan(a) or total == 0:
            weights.append(1.0)
        else:
            weights.append(len(known) * (1 - a) ** tau / total)
    return weights


def test_cdb_w_of_hand_computed_recalls() -> None:
    # b = .99 / .50 - 1 = .98; tau = 2 / (1 + e^-.98) = 1.4542; .01^tau and .51^tau
    assert weighting.cdb_w([0.99, 0.49]).tolist() == pytest.approx([0.0065528, 1.9934472], rel=1e-4)
    # Equal recalls: the exponent does not matter.
    assert weighting.cdb_w([0.8, 0.8, 0.8, 0.8]).tolist() == pytest.approx([1, 1, 1, 1])
    assert weighting.cdb_w([0.2, 0.9], tau=0).tolist() == [1, 1]
    # A class that is never recalled: b = 1 / .01 - 1, tau = 2; class 1 has no error.
    assert weighting.cdb_w([0.0, 1.0, 0.5]).tolist() == pytest.approx([2.4, 0, 0.6])


@pytest.mark.parametrize("tau", ["dynamic", 0, 0.5, 1, 2.0, 5])
@pytest.mark.parametrize("unknown", [0, 1, 3])
def test_cdb_w_is_the_slow_loop(tau: Any, unknown: int) -> None:
    draw = random.Random(unknown)
    for size in (1, 2, 5, 40):
        recall = [draw.random() for _ in range(size)] + [NAN] * unknown
        draw.shuffle(recall)
        found = weighting.cdb_w(torch.tensor(recall, dtype=torch.float64), tau=tau)
        assert found.tolist() == pytest.approx(slow_cdb_w(recall, tau), rel=1e-9)
        assert float(found.sum()) == pytest.approx(len(recall))


def test_drop_form_is_the_error() -> None:
    assert weighting.cdb_w_drop([0.9, 0.25, 1.0]).tolist() == pytest.approx([0.1, 0.75, 0])
    assert weighting.cdb_w_drop([0.5, NAN, 0.1]).tolist() == pytest.approx([0.5, 0.7, 0.9])
    # In proportion it is the original with tau = 1.
    recall = torch.rand(7)
    ratio = weighting.cdb_w(recall, tau=1) / weighting.cdb_w_drop(recall)
    assert ratio.tolist() == pytest.approx([float(ratio[0])] * 7, rel=1e-5)


@pytest.mark.parametrize("weights", OF_CLASSES)
@pytest.mark.parametrize("recall", [[1.0, 1.0], [NAN, NAN], [1.0, NAN], [1.0]])
def test_nothing_to_tell_classes_apart_gives_ones(
    weights: Callable[..., Tensor], recall: list[float]
) -> None:
    assert weights(recall).tolist() == [1.0] * len(recall)


@pytest.mark.parametrize("weights", OF_CLASSES)
def test_class_weights_keep_dtype_and_arguments(weights: Callable[..., Tensor]) -> None:
    for dtype in (torch.float64, torch.float32, torch.float16):
        recall = torch.tensor([0.5, 0.25, NAN], dtype=dtype)
        before = recall.clone()
        found = weights(recall)
        assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert found.shape == (3,)
        assert torch.equal(recall.nan_to_num(9), before.nan_to_num(9))
    harder = weights([0.1, 0.6, 0.9])
    assert harder[0] > harder[1] > harder[2]


@pytest.mark.parametrize("weights", OF_CLASSES)
@pytest.mark.parametrize(
    ("recall", "match"),
    [
        ([0.5, 1.5], r"`recall` must be in \[0, 1\], .* got 1.5 for class 1"),
        ([-0.5], "got -0.5 for class 0"),
        ([float("inf"), 0.1], "got inf for class 0"),
        ([], r"`recall` must be \[K\] with at least one class, got shape \[0\]"),
        ([[0.5, 0.5]], r"got shape \[1, 2\]"),
    ],
)
def test_bad_recalls_are_refused(weights: Callable[..., Tensor], recall: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        weights(recall)


@pytest.mark.parametrize("tau", [-1.0, NAN, float("inf"), "adaptive", "1.5", None])
def test_bad_exponents_are_refused(tau: Any) -> None:
    with pytest.raises(ValueError, match=f"`tau` must be 'dynamic' or a number .* got {tau!r}"):
        weighting.cdb_w([0.5, 0.6], tau=tau)


def softmax(row: list[float]) -> list[float]:
    raised = [math.exp(x - max(row)) for x in row]
    return [x / sum(raised) for x in raised]


def slow_loss(
    logits: Tensor, dense: Tensor, target: Tensor, m: float, gamma: float
) -> tuple[list[float], list[list[float]], float]:
    weights, targets, total = [], [], 0.0
    for row, dense_row, y in zip(logits.tolist(), dense.tolist(), target.tolist(), strict=True):
        p, q = softmax(row), softmax(dense_row)
        weight = m + (1 - m) * (1 - q[y]) ** gamma
        right = max(range(len(q)), key=q.__getitem__) == y
        soft = q if right else [float(c == y) for c in range(len(q))]
        total += weight * -sum(t * math.log(x) for t, x in zip(soft, p, strict=True))
        weights.append(weight)
        targets.append(soft)
    return weights, targets, total / len(target)


@pytest.mark.parametrize(
    ("m", "gamma"), [(0.75, 5.0), (0.4, 0.5), (0.0, 1.0), (1.0, 3.0), (0.2, 0)]
)
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_performance_weighting_is_the_slow_loop(classes: int, m: float, gamma: float) -> None:
    logits = torch.randn(30, classes, dtype=torch.float64)
    dense = 2 * torch.randn(30, classes, dtype=torch.float64)
    target = torch.randint(classes, (30,))
    weights, targets, loss = slow_loss(logits, dense, target, m, gamma)
    found = weighting.performance_weights(dense, target, m=m, gamma=gamma)
    assert found.tolist() == pytest.approx(weights)
    soft = weighting.corrected_targets(dense, target)
    for row, expected in zip(soft.tolist(), targets, strict=True):
        assert row == pytest.approx(expected)
    value = weighting.performance_weighted_loss(logits, dense, target, m=m, gamma=gamma)
    assert float(value) == pytest.approx(loss)


def test_defaults_are_those_of_the_authors_command_line() -> None:
    for function in (weighting.performance_weights, weighting.performance_weighted_loss):
        parameters = inspect.signature(function).parameters
        assert (parameters["m"].default, parameters["gamma"].default) == (0.75, 5.0)
    # .75 + .25 * .5^5
    weight = weighting.performance_weights(torch.zeros(1, 2), torch.tensor([1]))
    assert float(weight) == pytest.approx(0.7578125)


def test_weight_one_is_cross_entropy_with_soft_targets() -> None:
    logits, dense = torch.randn(12, 4), torch.randn(12, 4)
    target = torch.randint(4, (12,))
    expected = F.cross_entropy(logits, weighting.corrected_targets(dense, target))
    found = weighting.performance_weighted_loss(logits, dense, target, m=1.0)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_certainty_has_finite_weights_and_gradients() -> None:
    sure = torch.tensor([[200.0, 0.0], [0.0, 200.0], [0.0, -math.inf]])
    target = torch.tensor([0, 0, 0])
    for gamma in (0.0, 0.5, 5.0):
        weights = weighting.performance_weights(sure, target, m=0.4, gamma=gamma)
        lowest = 1.0 if gamma == 0 else 0.4
        assert weights.tolist() == pytest.approx([lowest, 1.0, lowest])
    logits = torch.randn(3, 2, requires_grad=True)
    weighting.performance_weighted_loss(logits, sure, target, gamma=0.5).backward()
    assert logits.grad.isfinite().all()


def test_gradient_goes_to_the_pruned_model_alone() -> None:
    logits = torch.randn(5, 3, requires_grad=True)
    dense = torch.randn(5, 3, requires_grad=True)
    weighting.performance_weighted_loss(logits, dense, torch.tensor([0, 1, 2, 0, 1])).backward()
    assert logits.grad is not None
    assert dense.grad is None


@pytest.mark.parametrize("function", OF_SAMPLES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_half_precision_is_computed_in_single(
    function: Callable[..., Tensor], dtype: torch.dtype
) -> None:
    dense, target = torch.randn(6, 3).to(dtype), torch.tensor([0, 1, 2, 2, 1, 0])
    found = function(dense, target)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.allclose(found.double(), function(dense.double(), target), atol=1e-6)
    assert torch.equal(found, function(dense, target.int()))


@pytest.mark.parametrize("function", OF_SAMPLES)
@pytest.mark.parametrize(
    ("shape", "target", "match"),
    [
        ((4, 1), torch.zeros(4).long(), r"at least 2 classes .* got \[4, 1\] and \[4\]"),
        ((4,), torch.zeros(4).long(), r"`dense_logits` must be \[B, C\]"),
        ((4, 3), torch.zeros(5).long(), r"`target` \[B\], got \[4, 3\] and \[5\]"),
        (
            (4, 3),
            torch.zeros(4),
            "`target` must hold one class index per sample, got torch.float32",
        ),
    ],
)
def test_bad_shapes_are_refused(
    function: Callable[..., Tensor], shape: tuple[int, ...], target: Tensor, match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        function(torch.zeros(shape), target)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"m": -0.1}, r"`m` must be in \[0, 1\], got -0.1"),
        ({"m": 1.5}, r"`m` must be in \[0, 1\], got 1.5"),
        ({"gamma": -1.0}, "`gamma` must be 0 or more, got -1.0"),
        ({"gamma": NAN}, "`gamma` must be 0 or more, got nan"),
    ],
)
def test_bad_settings_are_refused(options: dict[str, float], match: str) -> None:
    logits, target = torch.zeros(2, 2), torch.tensor([0, 1])
    with pytest.raises(ValueError, match=match):
        weighting.performance_weights(logits, target, **options)
    with pytest.raises(ValueError, match=match):
        weighting.performance_weighted_loss(logits, logits, target, **options)


def test_both_models_must_have_the_same_classes() -> None:
    with pytest.raises(ValueError, match=r"same shape \[B, C\], got \[2, 3\] and \[2, 2\]"):
        weighting.performance_weighted_loss(torch.zeros(2, 3), torch.zeros(2, 2), torch.arange(2))


def test_every_function_is_in_a_family_above() -> None:
    families = {f.__name__ for f in [*OF_CLASSES, *OF_SAMPLES]}
    assert families | {"performance_weighted_loss"} == set(weighting.__all__)
