from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable
from typing import Any

import oracles_quotas as oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_fairprune import quotas
from lightning_fairprune.quotas import (
    Minimax,
    apportion,
    balanced,
    class_difficulty,
    difficulty,
    drop,
    drop_reference,
    of_subset,
    proportional,
    rcap,
    separability,
)

NAN = math.nan
FREE = 1e-9  # a `worst` that bounds nothing
RECALL = [0.92, 0.96, 0.86, 0.77, 0.90, 0.84, 0.93, 0.92, 0.95, 0.94]
LONG_TAIL = [5000, 3000, 1800, 1080, 648]
LONG_TAIL_RECALL = [0.95, 0.9, 0.8, 0.6, 0.4]


def rules() -> dict[str, Callable[..., Tensor]]:
    """Every public rule, called as (sizes, recall, budget); one that takes losses or difficulties gets the errors."""

    def uniform(rule: Callable[..., Tensor]) -> Callable[..., Tensor]:
        parameters = inspect.signature(rule).parameters
        if "recall" in parameters:
            return rule
        if {"loss", "difficulty"} & set(parameters):
            return lambda sizes, recall, budget, **options: rule(
                sizes, 1 - torch.as_tensor(recall), budget, **options
            )
        return lambda sizes, recall, budget, **options: rule(sizes, budget, **options)

    found = {}
    for name in quotas.__all__:
        thing = getattr(quotas, name)
        rule = (lambda *a, **k: Minimax(step=20.0)(*a, **k)) if name == "Minimax" else thing
        signature = inspect.signature(Minimax() if name == "Minimax" else thing)
        if {"sizes", "budget"} <= set(signature.parameters):
            found[name] = rule if name == "Minimax" else uniform(rule)
    return found


RULES = rules()
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())


def test_every_rule_is_found() -> None:
    of_recalls = {"drop", "drop_reference", "Minimax"}
    assert set(RULES) == of_recalls | {"proportional", "balanced", "rcap", "difficulty"}
    assert "recall" in inspect.signature(Minimax()).parameters
    assert "recall" not in inspect.signature(proportional).parameters


GOLDEN = [
    (
        [5000] * 10,
        RECALL,
        25_000,
        [2051.28, 1025.64, 3589.74, 5000, 2564.1, 4102.56, 1794.87, 2051.28, 1282.05, 1538.46],
    ),
    (
        [5000] * 10,
        RECALL,
        40_000,
        [4210.53, 2105.26, 5000, 5000, 5000, 5000, 3684.21, 4210.53, 2631.58, 3157.89],
    ),
    (
        [5000] * 10,
        RECALL,
        45_000,
        [5000, 2727.27, 5000, 5000, 5000, 5000, 4772.73, 5000, 3409.09, 4090.91],
    ),
    (LONG_TAIL, LONG_TAIL_RECALL, 3458, [523.547, 628.256, 753.908, 904.689, 648.0]),
    (LONG_TAIL, LONG_TAIL_RECALL, 6917, [1540.364, 1848.436, 1800, 1080, 648]),
]


@pytest.mark.parametrize(("sizes", "recall", "budget", "expected"), GOLDEN)
def test_drop_is_within_one_sample_of_the_exact_real_numbers(
    sizes: list[int], recall: list[float], budget: int, expected: list[float]
) -> None:
    quota = drop(sizes, recall, budget)
    assert int(quota.sum()) == budget
    torch.testing.assert_close(quota.double(), torch.tensor(expected).double(), atol=1.0, rtol=0)
    exact = torch.tensor(oracle.passes(sizes, recall, budget), dtype=torch.float64)
    torch.testing.assert_close(quota.double(), exact, atol=1.0, rtol=0)


def test_drop_reference_is_within_one_sample_of_the_published_code() -> None:
    expected = [2051, 1025, 3589, 5000, 2563, 4102, 1794, 2051, 1281, 1538]
    quota = drop_reference([5000] * 10, RECALL, 25_000)
    assert (quota - torch.tensor(expected)).abs().max() <= 1
    quota = drop_reference(LONG_TAIL, LONG_TAIL_RECALL, 3458)  # saturated: exact, cut afterwards
    assert (quota - torch.tensor([246, 493, 987, 1080, 648])).abs().max() <= 5


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        # Equal recalls keep proportions in drop and balance in drop_reference.
        (lambda: drop([5000, 2500, 1000, 100], [0.5] * 4, 4300), [2500, 1250, 500, 50]),
        (lambda: drop_reference([5000, 2500, 1000, 100], [0.5] * 4, 4300), [1600, 1600, 1000, 100]),
        (lambda: balanced([100, 10, 50], 90), [40, 10, 40]),
        # A class of recall 1 keeps nothing or its floor; several share what the others cannot take.
        (lambda: drop([50, 50, 50], [1.0, 0.5, 0.5], 60), [0, 30, 30]),
        (lambda: drop([50, 50, 50], [1.0, 0.5, 0.5], 60, floor=10), [10, 25, 25]),
        (lambda: drop([100, 50, 20], [1.0, 1.0, 0.5], 80), [40, 20, 20]),
        # A class of recall 0 is filled first.
        (lambda: drop([50, 50, 50], [0.0, 0.8, 0.8], 70), [50, 10, 10]),
        # An unknown recall counts as the mean of the known.
        (lambda: drop([60, 40, 10], [0.9, 0.7, NAN], 23), [7, 14, 2]),
        # 1 / fl(1 / 99) is a little below 99: a division alone would miss the fiftieth seat.
        (lambda: apportion([1.0, math.nextafter(1 / 99, 0.0)], [100, 10**6], 50), [50, 0]),
        # Tiny and huge weights together.
        (lambda: apportion([1e300, 1e-300], [5, 5], 7), [5, 2]),
        (lambda: apportion([5e-324, 5e-324], [50, 50], 20), [10, 10]),
        (lambda: apportion([1e-280, 1e308, 0.0], [50, 50, 50], 120), [50, 50, 20]),
        (lambda: apportion([1e-300, 3e-300], [10**8, 10**8], 10**7), [2_500_000, 7_500_000]),
        (lambda: of_subset([2, 0, 1, 1, 2, -1], [0, 2, 3]), [0, 2, 1]),
        (lambda: of_subset([2, 0, 1, 1, 2, -1], [], num_classes=2), [0, 0]),
        (lambda: of_subset([], []), []),
    ],
)
def test_known_values(call: Callable[[], Tensor], expected: list[int]) -> None:
    assert call().tolist() == expected


def test_both_forms_agree_on_equal_sizes() -> None:
    for budget in range(0, 50_001, 997):
        sizes = [5000] * 10
        assert torch.equal(drop(sizes, RECALL, budget), drop_reference(sizes, RECALL, budget))


@given(st.integers(0, 2**32), st.integers(1, 12))
@settings(max_examples=100, deadline=None)
def test_drop_reference_equals_whole_shares_where_no_class_is_full(seed: int, k: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    recall = torch.rand(k, generator=generator, dtype=torch.float64) * 0.9
    budget = int(torch.randint(0, 5000, (), generator=generator))
    quota = drop_reference([5000] * k, recall, budget)
    shares = torch.tensor(oracle.whole_shares(recall.tolist(), budget))
    # Ours is rounded, theirs cut: between 0 and 1 apart, and Webster may add a seat to a large share.
    assert int((quota - shares).min()) >= -1
    assert int((quota - shares).max()) <= 1 + (k > 3)


weight = st.one_of(
    st.sampled_from([0.0, 1.0, 3.0, 0.1, 0.3]),
    st.integers(0, 9).map(float),
    st.floats(0, 1e300, allow_subnormal=False),
    st.floats(-300, 300).map(lambda e: 10.0**e),
)


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[float], list[int], list[int], int]:
    k = draw(st.integers(1, 7))
    weights = draw(st.lists(weight, min_size=k, max_size=k))
    capacity = draw(st.lists(st.integers(0, 40), min_size=k, max_size=k))
    floor = draw(st.lists(st.sampled_from([0, 0, 1, 9]), min_size=k, max_size=k))
    least = sum(map(min, floor, capacity))
    return weights, capacity, floor, draw(st.integers(least, sum(capacity)))


@given(problems())
@settings(max_examples=400, deadline=None)
def test_apportion_equals_the_sorted_list_of_seats(
    problem: tuple[list[float], list[int], list[int], int],
) -> None:
    weights, capacity, floor, budget = problem
    quota = apportion(weights, capacity, budget, floor=floor)
    assert quota.dtype == torch.int64
    assert quota.tolist() == oracle.seat_list(weights, capacity, budget, floor)


@st.composite
def large_problems(draw: st.DrawFn) -> tuple[Tensor, Tensor, int]:
    """Up to 10^8 samples in up to 21,841 classes, drawn by seed: sizes, recalls, budget."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    k = draw(st.sampled_from([1, 2, 10, 1000, 21_841]))
    total = draw(st.sampled_from([50, 10**5, 10**8]))
    shape = torch.rand(k, generator=generator, dtype=torch.float64) ** draw(st.integers(0, 6))
    sizes = (shape / shape.sum() * total).long()
    recall = torch.rand(k, generator=generator, dtype=torch.float64)
    kind = draw(st.sampled_from(["any", "coarse", "some 1", "some NaN", "all 1", "all 0"]))
    if kind == "coarse":
        recall = (recall * 10).floor() / 10
    elif kind == "some 1":
        recall[recall > 0.5] = 1.0
    elif kind == "some NaN":
        recall[recall > 0.8] = NAN
    elif kind.startswith("all"):
        recall.fill_(float(kind[-1]))
    return sizes, recall, round(draw(st.floats(0, 1)) * int(sizes.sum()))


@given(large_problems(), st.sampled_from(list(RULES)), st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_quotas_are_exact_capped_and_nested_at_any_size(
    problem: tuple[Tensor, Tensor, int], name: str, fraction: float
) -> None:
    sizes, recall, budget = problem
    quota = RULES[name](sizes, recall, budget)
    assert int(quota.sum()) == budget
    assert bool(((quota >= 0) & (quota <= sizes)).all())
    for smaller in {int(fraction * budget), max(budget - 1, 0)}:
        assert bool((RULES[name](sizes, recall, smaller) <= quota).all())
    cap = max(1, int(sizes.max()) // 2)
    part = min(budget, int(sizes.clamp(max=cap).sum()))
    quota = RULES[name](sizes, recall, part, cap=cap)
    assert int(quota.sum()) == part
    assert int(quota.max()) <= cap


@given(st.integers(1, 40), st.integers(1, 50), st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_equal_classes_differ_by_at_most_one(
    k: int, size: int, recall: float, density: float
) -> None:
    for rule in RULES.values():
        quota = rule([size] * k, [recall] * k, round(density * k * size))
        assert int(quota.max() - quota.min()) <= 1
        assert quota.tolist() == sorted(quota.tolist(), reverse=True)


@given(st.integers(0, 2**32), st.floats(0.05, 0.95))
@settings(max_examples=60, deadline=None)
def test_drop_follows_the_paper_within_two_samples(seed: int, density: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 3000, (12,), generator=generator)
    recall = torch.rand(12, generator=generator, dtype=torch.float64) * 0.99
    budget = round(density * int(sizes.sum()))
    exact = oracle.passes(sizes.tolist(), recall.tolist(), budget)
    shares = (sizes * (1 - recall)).tolist()
    assert exact == pytest.approx(oracle.water_filling(shares, sizes.tolist(), budget), abs=1e-3)
    quota = drop(sizes, recall, budget)
    assert float((quota - torch.tensor(exact)).abs().max()) < 2.0


@given(st.integers(0, 2**32), st.floats(0.05, 0.95))
@settings(max_examples=60, deadline=None)
def test_rcap_follows_the_formula_within_two_samples(seed: int, density: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 3000, (12,), generator=generator)
    loss = torch.rand(12, generator=generator, dtype=torch.float64) * 3 + 0.01
    budget = round(density * int(sizes.sum()))
    shares = [math.sqrt(n * value) for n, value in zip(sizes.tolist(), loss.tolist(), strict=True)]
    exact = oracle.water_filling(shares, sizes.tolist(), budget)
    quota = rcap(sizes, loss, budget)
    assert float((quota - torch.tensor(exact)).abs().max()) < 2.0


def test_rcap_has_the_least_sum_of_losses_over_quotas() -> None:
    sizes, loss, budget = [60, 25, 6], [0.2, 0.5, 2.0], 30
    cost = {
        (a, b, c): sum(n * value / m for n, value, m in zip(sizes, loss, (a, b, c), strict=True))
        for a in range(1, 61)
        for b in range(1, 26)
        for c in range(1, 7)
        if a + b + c == budget
    }
    assert tuple(rcap(sizes, loss, budget).tolist()) == min(cost, key=cost.__getitem__)


def test_difficulty_is_drop_with_other_numbers() -> None:
    error = 1 - torch.tensor(RECALL, dtype=torch.float64)
    for budget in (0, 1, 25_000, 40_000):
        expected = drop([5000] * 10, RECALL, budget, floor=3 if budget > 30 else 0)
        found = difficulty([5000] * 10, error * 7, budget, floor=3 if budget > 30 else 0)
        assert torch.equal(found, expected)
    with pytest.raises(ValueError, match="`difficulty` must be finite and >= 0"):
        difficulty([5, 5], [0.1, -0.2], 3)


class_scores = st.lists(
    st.tuples(st.integers(-1, 4), st.floats(-50, 50, width=32)), min_size=0, max_size=60
)


@given(class_scores, st.sampled_from([0.0, 0.05, 0.1, 0.25, 0.49]))
def test_class_difficulty_is_the_mean_after_replacing_both_ends(
    samples: list[tuple[int, float]], winsorise: float
) -> None:
    target, score = [k for k, _ in samples], [value for _, value in samples]
    found = class_difficulty(score, target, winsorise=winsorise, num_classes=5)
    expected = torch.tensor(
        oracle.class_difficulty(score, target, winsorise, 5), dtype=torch.float64
    )
    torch.testing.assert_close(found, expected, equal_nan=True, atol=1e-9, rtol=1e-9)
    assert bool((found[~found.isnan()] >= 0).all())


def test_class_difficulty_replaces_as_scipy_does() -> None:
    winsorised = pytest.importorskip("scipy.stats.mstats").winsorize
    score = torch.rand(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = float(winsorised(score.numpy(), limits=(0.05, 0.05)).mean())
    assert float(class_difficulty(score, [0] * 200)) == pytest.approx(expected)


def test_one_wrong_label_hardly_changes_a_class() -> None:
    score, target = torch.full((100,), 0.1), torch.zeros(100, dtype=torch.int64)
    score[7] = 1000.0
    assert float(class_difficulty(score, target)) == pytest.approx(0.1)
    assert float(class_difficulty(score, target, winsorise=0)) > 10


def test_what_class_difficulty_refuses() -> None:
    with pytest.raises(ValueError, match=r"`winsorise` must be in \[0, 0.5\)"):
        class_difficulty([1.0], [0], winsorise=0.5)
    with pytest.raises(ValueError, match=r"must be finite .*first at index 2"):
        class_difficulty([NAN, 1.0, NAN], [-1, 0, 0])
    with pytest.raises(ValueError, match=r"same shape \[N\], got \(2,\) and \(1,\)"):
        class_difficulty([1.0, 2.0], [0])
    with pytest.raises(ValueError, match="`target` must be below 2, got 3"):
        class_difficulty([1.0, 2.0], [0, 3], num_classes=2)


@pytest.mark.parametrize("recall", [1.0, NAN, 0.0])
def test_recalls_that_tell_nothing_keep_the_proportions(recall: float) -> None:
    sizes = [60, 40, 10]
    for cap in (None, 30):
        expected = proportional(sizes, 33, cap=cap)
        assert torch.equal(drop(sizes, [recall] * 3, 33, cap=cap), expected)
        expected = balanced(sizes, 33, cap=cap)
        assert torch.equal(drop_reference(sizes, [recall] * 3, 33, cap=cap), expected)


def test_an_empty_class_gets_nothing_whatever_its_recall() -> None:
    for recall in (0.0, NAN, 1.0):
        for rule in RULES.values():
            quota = rule([30, 0, 30], [0.5, recall, 0.5], 20)
            assert quota.tolist() == [10, 0, 10]


@every_rule
def test_one_class_and_no_class(rule: Callable[..., Tensor]) -> None:
    assert rule([9], [0.3], 4).tolist() == [4]
    assert rule([], [], 0).tolist() == []


@every_rule
def test_tensors_lists_and_narrow_types_give_the_same(rule: Callable[..., Tensor]) -> None:
    recall = [0.5, 0.25, 0.75]
    expected = rule([60, 40, 10], recall, 33)
    assert torch.equal(
        rule(torch.tensor([60, 40, 10], dtype=torch.int32), torch.tensor(recall), 33), expected
    )
    assert torch.equal(rule((60, 40, 10), torch.tensor(recall).half(), 33), expected)
    sizes = torch.tensor([60, 40, 10])
    rule(sizes, recall, 33)
    assert sizes.tolist() == [60, 40, 10]


def test_minimax_multiplies_weights_by_the_exponential_of_the_gap() -> None:
    rule = Minimax(step=3.0, leak=0.25, worst=FREE)
    rule.log_weight = torch.tensor([0.4, -0.4, 0.0], dtype=torch.float64)
    quota = rule([10**6, 10**6, 10**6], [0.5, 0.7, 0.9], 10**6)
    log_weight = [0.75 * 0.4 + 3 * 0.2, 0.75 * -0.4, -3 * 0.2]
    assert rule.log_weight.tolist() == pytest.approx(log_weight)
    weights = [math.exp(value) for value in log_weight]
    expected = [10**6 * value / sum(weights) for value in weights]
    assert quota.tolist() == pytest.approx(expected, abs=1.0)


def test_minimax_does_not_push_unknown_or_empty_classes() -> None:
    rule = Minimax(step=10.0, leak=0.0, worst=FREE)
    for _ in range(300):  # an empty class must not drag the others out of the range of exp
        quota = rule([100, 100, 100, 0], [0.8, 0.6, NAN, 0.0], 150)
    assert rule.log_weight.tolist() == pytest.approx([-300.0, 300.0, 0.0, 0.0])
    assert quota.tolist() == [0, 100, 50, 0]


def test_minimax_survives_a_gap_that_never_closes() -> None:
    rule = Minimax(step=100.0, leak=0.0, worst=FREE)
    for _ in range(100):
        quota = rule([100, 100], [1.0, 0.0], 120)
    assert quota.tolist() == [20, 100]


def test_the_state_of_minimax_is_a_plain_copy() -> None:
    rule = Minimax(step=2.0, leak=0.0, worst=FREE)
    rule([100, 100], [0.5, 0.9], 100)
    state = rule.state_dict()
    assert {type(value) for value in state.values()} == {float, Tensor}
    rule([100, 100], [0.6, 0.8], 100)
    assert state["log_weight"].tolist() == pytest.approx([0.4, -0.4])
    rule.load_state_dict(Minimax().state_dict())
    assert rule.log_weight is None


def test_minimax_forgets_on_reset() -> None:
    rule = Minimax()
    first = rule([100, 100], [0.5, 0.9], 100)
    rule.reset()
    assert torch.equal(rule([100, 100], [0.5, 0.9], 100), first)


def test_minimax_is_unchanged_by_a_call_that_raises() -> None:
    rule = Minimax()
    rule([100, 100], [0.5, 0.9], 100)
    before = rule.log_weight.clone()
    with pytest.raises(ValueError, match="`budget`"):
        rule([100, 100], [0.5, 0.9], 201)
    assert torch.equal(rule.log_weight, before)


def test_minimax_says_what_it_is() -> None:
    assert repr(Minimax(step=0.5, leak=0.1)) == "Minimax(step=0.5, leak=0.1, worst=0.5)"


def test_the_bound_of_minimax_by_hand() -> None:
    # Weights e^1, 1, 1 of equal classes: shares .576, .212, .212. At worst=2/3 the first is cut to
    # 1/2, the others keep their ratio and get 1/4 each, so that its log-weight becomes log 2.
    rule = Minimax(step=1.5, leak=0.0, worst=2 / 3)
    recall = [0.0, 2 / 3, 2 / 3]  # steps of 2/3, -1/3 and -1/3
    assert rule([900, 900, 900], recall, 400).tolist() == [200, 100, 100]
    assert rule.log_weight.diff().tolist() == pytest.approx([-math.log(2), 0.0])


def test_minimax_keeps_no_weight_beyond_its_bound() -> None:
    rule = Minimax(step=3.0, leak=0.0, worst=0.5)
    for _ in range(200):  # a class that nothing helps
        quota = rule([600] * 10, [0.6] + [0.95] * 9, 1800)
    assert quota.tolist() == [360] + [160] * 9
    # It answers, and gives samples back in the same call.
    assert rule([600] * 10, [0.99] + [0.95] * 9, 1800)[0] < 350


@pytest.mark.parametrize("worst", [1.0, 0.5])
def test_minimax_bounds_the_worst_fraction(worst: float) -> None:
    sizes = torch.tensor(LONG_TAIL)
    rule, free = Minimax(worst=worst), Minimax(worst=FREE)
    for _ in range(100):
        quota, unbound = (r(sizes, LONG_TAIL_RECALL, 2000) for r in (rule, free))
    share = quota / proportional(sizes, 2000)
    assert (unbound / proportional(sizes, 2000)).max() > 2.5
    assert float(share.max()) == pytest.approx(1 / worst, abs=0.01)
    if worst == 1:
        assert torch.equal(quota, proportional(sizes, 2000))


def test_a_bound_that_is_not_reached_changes_nothing() -> None:
    bound, free = Minimax(leak=0.0, worst=0.3), Minimax(leak=0.0, worst=FREE)
    for _ in range(2):
        quota = [rule(LONG_TAIL, LONG_TAIL_RECALL, 5000) for rule in (bound, free)]
        assert torch.equal(*quota)
        assert torch.equal(bound.log_weight, free.log_weight)


def test_the_defaults_of_minimax_hold_where_recalls_do_not_move() -> None:
    rule = Minimax(step=3.0)
    for _ in range(12):
        quota = rule([6000] * 10, [0.5] + [0.9] * 9, 6000)
    assert quota.tolist()[0] == 1200
    assert min(quota.tolist()) > 500


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: apportion([-1.0], [3], 1), ValueError, "`weights` must be finite and >= 0"),
        (lambda: apportion([NAN], [3], 1), ValueError, "`weights` must be finite and >= 0"),
        (lambda: apportion([math.inf], [3], 1), ValueError, "`weights` must be finite and >= 0"),
        (lambda: apportion([1.0, 2.0], [3], 1), ValueError, "`weights` must have one entry per"),
        (lambda: apportion([1.0], [3], 4), ValueError, "`budget` must be at most the 3 .* got 4"),
        (lambda: apportion([1.0], [3], -1), ValueError, "`budget` must be .* at least 0, got -1"),
        (lambda: apportion([1.0], [3], 1.5), TypeError, "`budget` must be an int, got 1.5"),
        (lambda: apportion([1.0], [3.0], 1), TypeError, "`capacity` must hold integers"),
        (lambda: apportion([1.0], [-3], 1), ValueError, "`capacity` must be >= 0, got -3"),
        (lambda: apportion([1.0], [[3]], 1), ValueError, "`capacity` must be one-dimensional"),
        (lambda: apportion([1.0], [3], 1, floor=2), ValueError, "`floor` asks for 2 .*`budget`=1"),
        (lambda: apportion([1.0], [3], 1, floor=-2), ValueError, "`floor` must be >= 0, got -2"),
        (lambda: apportion([1.0], [3], 1, floor=[1, 1]), ValueError, r"`floor` must be .* \[1\]"),
        (lambda: drop([9], [0.5], 5, cap=4), ValueError, "`budget` must be at most the 4"),
        (lambda: drop([3], [-0.1], 1), ValueError, r"`recall` must be in \[0, 1\].* -0.1"),
        (lambda: drop([3, 3.5], [0.5, 0.5], 1), TypeError, "`sizes` must hold integers"),
        (
            lambda: drop([3, -3], [0.5, 0.5], 1),
            ValueError,
            "`sizes` must be >= 0, got -3 for class 1",
        ),
        (lambda: rcap([3], [-0.5], 1), ValueError, "`loss` must be finite and >= 0.* -0.5 for cl"),
        (lambda: rcap([3], [math.inf], 1), ValueError, "`loss` must be finite .* inf for class 0"),
        (lambda: rcap([3, 3], [0.5], 1), ValueError, "`loss` must have one entry per class"),
        (lambda: Minimax(step=NAN), ValueError, "`step` must be positive and finite"),
        (lambda: Minimax(worst=0.0), ValueError, r"`worst` must be in \(0, 1\], got 0.0"),
        (lambda: Minimax(worst=1.1), ValueError, r"`worst` must be in \(0, 1\], got 1.1"),
        (lambda: Minimax(leak=1.0), ValueError, r"`leak` must be in \[0, 1\), got 1.0"),
        (lambda: Minimax().load_state_dict({"log_weight": [NAN]}), ValueError, "`log_weight` must"),
        (lambda: of_subset([0, 1], [2]), ValueError, r"`indices` must be in \[0, 2\), got 2 to 2"),
        (lambda: of_subset([0, -1], [1]), ValueError, r"`target` must be in \[0, 1\).* got -1"),
        (lambda: of_subset([0, 5], [1], 3), ValueError, r"`target` must be in \[0, 3\).* got 5"),
        (lambda: of_subset([0, 5], [1.0]), TypeError, "`indices` must hold integers"),
    ],
)
def test_errors_say_what_must_hold(
    call: Callable[[], Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        call()


def test_minimax_refuses_another_number_of_classes() -> None:
    rule = Minimax()
    rule([3, 3], [0.5, 0.5], 2)
    with pytest.raises(ValueError, match=r"must have 2 classes .* got 1; call reset\(\)"):
        rule([3], [0.5], 1)


def test_budget_may_be_any_integer_type() -> None:
    assert operator.index(torch.tensor(4)) == 4
    assert drop([5, 5], [0.5, 0.5], torch.tensor(4)).tolist() == [2, 2]  # type: ignore[arg-type]


# Label x background: group 1 has no validation sample, group 2 none in training, group 3 neither.
HALF_KNOWN = [600, 40, 0, 0, 60]
HALF_RECALL = [0.9, NAN, 0.0, NAN, 0.5]


@every_rule
def test_groups_without_training_or_validation_samples(rule: Callable[..., Tensor]) -> None:
    quota = rule(HALF_KNOWN, HALF_RECALL, 350)
    assert quota.tolist()[2:4] == [0, 0]
    assert 0 < quota[1] <= 40
    # what is told of the groups that cannot be kept makes no difference to the others
    for told in (0.0, 1.0, NAN):
        recall = [0.9, NAN, told, told, 0.5]
        assert torch.equal(rule(HALF_KNOWN, recall, 350), quota)


def test_a_group_missing_in_validation_is_as_hard_as_the_mean_of_those_that_can_be_kept() -> None:
    expected = drop(HALF_KNOWN, [0.9, 0.7, 0.0, 0.0, 0.5], 110)  # not (.9 + 0 + .5) / 3
    assert torch.equal(drop(HALF_KNOWN, HALF_RECALL, 110), expected)
    rule = Minimax(step=5.0, leak=0.0, worst=FREE)
    rule(HALF_KNOWN, HALF_RECALL, 110)
    assert rule.log_weight.tolist() == pytest.approx([-1.0, 0, 0, 0, 1.0])


def test_groups_of_validation_alone_do_not_hide_that_no_other_has_errors() -> None:
    for rule, expected in ((drop, proportional), (drop_reference, balanced)):
        quota = rule([60, 30, 0], [1.0, NAN, 0.0], 40)
        assert torch.equal(quota, expected([60, 30, 0], 40))


# --- separability ---------------------------------------------------------------------------------


@given(class_scores.filter(lambda samples: len({k for k, _ in samples if k >= 0}) > 1))
@settings(max_examples=60, deadline=None)
def test_separability_is_that_of_kruskal_and_wallis(samples: list[tuple[int, float]]) -> None:
    kruskal = pytest.importorskip("scipy.stats").kruskal
    target, score = [k for k, _ in samples], [value for _, value in samples]
    found = separability(score, target)
    groups = [[v for k, v in samples if k == c] for c in sorted(set(target) - {-1})]
    if len({v for group in groups for v in group}) == 1:
        assert found == 0
        return
    expected = float(kruskal(*groups).statistic) / (sum(map(len, groups)) - 1)
    assert found == pytest.approx(expected, abs=1e-9)
    assert -1e-12 <= found <= 1 + 1e-12


def test_separability_reads_the_order_alone_and_takes_infinite_scores() -> None:
    score = torch.randn(300, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    target = torch.arange(300) % 3
    score += target
    found = separability(score, target)
    assert 0.2 < found < 0.8
    assert separability(score.exp(), target) == pytest.approx(found)
    assert separability(score, (target + 1) % 3) == pytest.approx(found)
    score[score.argmax()] = math.inf
    assert separability(score, target) == pytest.approx(found)
    assert separability([], []) == 0
    with pytest.raises(ValueError, match="must be a number for samples that have a class, 1 of 2"):
        separability([NAN, 1.0], [0, 0])
