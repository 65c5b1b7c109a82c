"""The values of the metrics against scikit-learn and loops, however the batches come."""

from __future__ import annotations

import inspect
import math
import re
from typing import Any

import oracles_metrics as slow
import pytest
import torch
from oracles_metrics import CASES, Case
from sklearn.metrics import recall_score, top_k_accuracy_score
from torch import Tensor

from lightning_fairprune import metrics
from lightning_fairprune.counts import ClassCounts
from lightning_fairprune.metrics import functional

EVERY = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def evaluate(case: Case, parts: Any, num_classes: int, **options: Any) -> Tensor:
    metric = case.make(num_classes, **options).set_dtype(torch.float64)
    for part in parts:
        metric.update(*part)
    value: Tensor = metric.compute()
    return value


def same(a: Tensor, b: Tensor, **tolerance: float) -> None:
    tolerance = {"rtol": 1e-9, "atol": 1e-12, **tolerance}
    torch.testing.assert_close(a.double(), b.double(), equal_nan=True, **tolerance)


def classes() -> list[str]:
    exported = {name: getattr(metrics, name) for name in metrics.__all__}
    base = metrics.ClassRecall.__mro__[1]
    return [n for n, m in exported.items() if inspect.isclass(m) and issubclass(m, base)]


def functional_name(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name.replace("CVaR", "Cvar")).lower()


def test_every_metric_has_a_loop_and_a_functional_form() -> None:
    assert {case.metric for case in CASES.values()} == set(classes())
    assert sorted(functional.__all__) == sorted(functional_name(name) for name in classes())


@EVERY
def test_the_class_says_what_torchmetrics_wants_to_know(case: Case) -> None:
    metric = getattr(metrics, case.metric)
    assert metric.is_differentiable is False
    assert metric.full_state_update is False
    assert metric.higher_is_better in (True, False, None)
    assert "Example:" in metric.__doc__


@EVERY
@pytest.mark.parametrize("seed", range(3))
def test_the_loop_agrees_however_the_samples_are_split(case: Case, seed: int) -> None:
    logits, target = slow.joined(slow.batches(seed))
    expected = case.expected(slow.count(logits, target, 5))
    for size in (100, 33, 7, 1):
        parts = zip(logits.split(size), target.split(size), strict=True)
        same(evaluate(case, parts, 5), expected)
    order = torch.randperm(100)
    same(evaluate(case, [(logits[order], target[order])], 5), expected)


@EVERY
def test_the_functional_form_agrees(case: Case) -> None:
    function = getattr(functional, functional_name(case.metric))
    logits, target = slow.joined(slow.batches())
    value = function(logits, target, 5, **case.arguments(5))
    metric = case.make(5)
    for batch in slow.batches():
        metric.update(*batch)
    torch.testing.assert_close(value, metric.compute(), rtol=0, atol=0, equal_nan=True)

    attribute = torch.arange(100) % 3
    options: dict[str, Any] = {"num_attributes": 3, "ignore_index": 0, "top_k": 2}
    value = function(logits, target, 5, attribute=attribute, **case.arguments(15), **options)
    metric = case.make(5, **options)
    metric.update(logits, target, attribute)
    torch.testing.assert_close(value, metric.compute(), rtol=0, atol=0, equal_nan=True)


def test_recall_is_that_of_scikit_learn() -> None:
    logits, target = slow.joined(slow.batches())
    expected = recall_score(target, logits.argmax(1), labels=range(4), average=None)
    value = evaluate(CASES["ClassRecall"], slow.batches(), 5)
    assert value[:4].tolist() == pytest.approx(expected.tolist(), abs=1e-15)
    assert value[4].isnan()
    worst = evaluate(CASES["WorstClassRecall"], slow.batches(), 5)
    assert worst.item() == pytest.approx(expected.min())
    gap = evaluate(CASES["RecallGap"], slow.batches(), 5)
    assert gap.item() == pytest.approx(expected.max() - expected.min())
    deviation = evaluate(CASES["RecallStd"], slow.batches(), 5)
    assert deviation.item() == pytest.approx(expected.std())


def test_the_accuracy_is_the_share_of_samples() -> None:
    # Not the mean recall, (1 + 1/3) / 2.
    metric = metrics.RecallBalance(2)
    metric.update(torch.tensor([0, 1, 0, 0]), torch.tensor([0, 1, 1, 1]))
    torch.testing.assert_close(metric.compute(), torch.tensor([0.5, 1 / 3 - 0.5]))


@EVERY
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_logits_of_any_precision(case: Case, dtype: torch.dtype) -> None:
    logits, target = slow.joined(slow.batches())
    logits = logits.to(dtype)
    expected = case.expected(slow.count(logits, target, 5))
    same(evaluate(case, [(logits, target)], 5), expected)


def test_of_equal_logits_the_first_is_predicted() -> None:
    logits = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]]).bfloat16()
    for label, right in ((0, [1, 0]), (1, [0, 1]), (2, [0, 0])):
        for row in range(2):
            metric = metrics.ClassRecall(3)
            metric.update(logits[row : row + 1], torch.tensor([label]))
            assert metric.tp.sum() == right[row]
    second = metrics.ClassRecall(3, top_k=2)
    second.update(torch.zeros(3, 3), torch.arange(3))
    assert second.tp.tolist() == [1, 1, 0]


@EVERY
def test_class_ids_are_as_good_as_logits(case: Case) -> None:
    ids = [(logits.argmax(1), target) for logits, target in slow.batches()]
    same(evaluate(case, ids, 5), evaluate(case, slow.batches(), 5))
    small = [(pred.to(torch.uint8), target.to(torch.int32)) for pred, target in ids]
    same(evaluate(case, small, 5), evaluate(case, slow.batches(), 5))


def test_probabilities_and_masked_logits() -> None:
    logits, target = slow.joined(slow.batches())
    expected = evaluate(CASES["ClassRecall"], [(logits, target)], 5)
    same(evaluate(CASES["ClassRecall"], [(logits.softmax(1), target)], 5), expected)
    logits[:, 4] = -math.inf  # never predicted
    counts = slow.count(logits, target, 5)
    expected = CASES["ClassRecall"].expected(counts)
    same(evaluate(CASES["ClassRecall"], [(logits, target)], 5), expected)


@pytest.mark.parametrize("top_k", [1, 2])
def test_more_dimensions_are_more_samples(top_k: int) -> None:
    logits, target = torch.randn(3, 5, 4, 2), torch.randint(0, 5, (3, 4, 2))
    expected = CASES["ClassRecall"].expected(slow.count(logits, target, 5, top_k=top_k))
    same(evaluate(CASES["ClassRecall"], [(logits, target)], 5, top_k=top_k), expected)
    flat = logits.movedim(1, -1).reshape(-1, 5), target.flatten()
    same(evaluate(CASES["ClassRecall"], [flat], 5, top_k=top_k), expected)
    ids = logits.argmax(1), target
    if top_k == 1:
        same(evaluate(CASES["ClassRecall"], [ids], 5), expected)


@pytest.mark.parametrize("top_k", range(1, 6))
def test_top_k_is_that_of_scikit_learn(top_k: int) -> None:
    logits, target = slow.joined(slow.batches())
    metric = metrics.ClassRecall(5, top_k=top_k)
    metric.update(logits, target)
    # All five are always right, about which scikit-learn warns.
    share = top_k_accuracy_score(target, logits, k=top_k, labels=range(5)) if top_k < 5 else 1
    assert (metric.tp.sum() / metric.support.sum()).item() == pytest.approx(share)
    logits = logits.round()  # ties, which scikit-learn breaks the other way
    same(
        evaluate(CASES["ClassRecall"], [(logits, target)], 5, top_k=top_k),
        CASES["ClassRecall"].expected(slow.count(logits, target, 5, top_k=top_k)),
    )


@EVERY
@pytest.mark.parametrize("ignore_index", [0, 2, -100, 255])
def test_ignored_samples_might_as_well_not_exist(case: Case, ignore_index: int) -> None:
    logits, target = slow.joined(slow.batches())
    target[::7] = ignore_index
    logits[::7, 0] = torch.nan  # whatever was predicted for them
    kept = target != ignore_index
    value = evaluate(case, [(logits, target)], 5, ignore_index=ignore_index)
    same(value, evaluate(case, [(logits[kept], target[kept])], 5))


@EVERY
def test_groups_take_the_place_of_classes(case: Case) -> None:
    logits, target = slow.joined(slow.batches())
    attribute = torch.randint(0, 2, (100,))  # of three: the last is never seen
    counts = slow.count(logits, target, 5, attribute=attribute, num_attributes=3)
    value = evaluate(case, [(logits, target, attribute)], 5, num_attributes=3)
    same(value, case.expected(counts))
    if value.ndim:
        assert value.shape == (15,)
        assert value[2::3].isnan().all()


@EVERY
def test_an_empty_batch_adds_nothing(case: Case) -> None:
    empty = torch.zeros(0, 5), torch.zeros(0).long()
    same(evaluate(case, [empty, *slow.batches(), empty], 5), evaluate(case, slow.batches(), 5))
    value = evaluate(case, [empty], 5)
    assert value == 0 if case.metric == "ZeroRecallClasses" else value.isnan().all()


def test_a_class_that_either_model_lacks_is_left_out_of_both() -> None:
    reference = ClassCounts(torch.tensor([9, 3, 0, 8]), torch.tensor([10, 10, 0, 10]))
    metric = metrics.AdjustedRecallChange(4, reference).set_dtype(torch.float64)
    # Recalls 1/2, 1, 0 and none.
    metric.update(torch.tensor([0, 1, 1, 1, 0]), torch.tensor([0, 0, 1, 1, 2]))
    # Over the first two: accuracy 3/4 after 12/20.
    expected = torch.tensor([0.5 - 0.9 - 0.15, 1 - 0.3 - 0.15, math.nan, math.nan])
    same(metric.compute(), expected, atol=1e-7)


def test_the_reference_is_read_once() -> None:
    recall = torch.tensor([0.5, 1.0])
    metric = metrics.RecallDistortion(2, recall)
    recall.zero_()
    metric.update(torch.tensor([0, 1]), torch.tensor([0, 1]))
    assert metric.compute().tolist() == [0.5, 0.0]
