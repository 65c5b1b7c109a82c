"""What holds for quotas whatever the sizes, recalls and budget."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from test_quotas import RULES
from torch import Tensor

from lightning_fairprune import quotas

NAN = math.nan
names = st.sampled_from(sorted(RULES))
fractions = st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1))


@dataclass
class Problem:
    sizes: list[int]
    recall: list[float]
    floor: list[int]
    cap: list[int]
    budgets: tuple[int, int]  # ascending, both possible

    @property
    def limits(self) -> dict[str, list[int]]:
        return {"floor": self.floor, "cap": self.cap}

    @property
    def capacity(self) -> Tensor:
        return torch.tensor(self.sizes).minimum(torch.tensor(self.cap))


@st.composite
def problems(draw: st.DrawFn, *, limits: bool = True, known: bool = False) -> Problem:
    k = draw(st.integers(1, 9))

    def each(one: st.SearchStrategy[Any]) -> list[Any]:
        return draw(st.lists(one, min_size=k, max_size=k))

    sizes = each(st.one_of(st.integers(0, 60), st.sampled_from([7, 10**6])))
    recall = each(fractions if known else st.one_of(fractions, st.just(NAN)))
    floor = each(st.sampled_from([0, 0, 1, 5, 100])) if limits else [0] * k
    cap = each(st.sampled_from([0, 3, 50, 10**6])) if limits else [10**6] * k
    most = [min(n, c) for n, c in zip(sizes, cap, strict=True)]
    least = sum(min(f, m) for f, m in zip(floor, most, strict=True))
    low, high = sorted(draw(st.integers(least, sum(most))) for _ in range(2))
    return Problem(sizes, recall, floor, cap, (low, high))


@given(problems(), names)
def test_exact_capped_floored_and_nested(p: Problem, name: str) -> None:
    low, high = (RULES[name](p.sizes, p.recall, b, **p.limits) for b in p.budgets)
    for quota, budget in zip((low, high), p.budgets, strict=True):
        assert quota.dtype == torch.int64
        assert int(quota.sum()) == budget
        assert bool((quota <= p.capacity).all())
        assert bool((quota >= torch.tensor(p.floor).minimum(p.capacity)).all())
    assert bool((low <= high).all())


@given(problems(), names)
def test_going_on_from_a_smaller_budget_is_the_same(p: Problem, name: str) -> None:
    """Seats that are given stay given, so they may as well be demanded."""
    low, high = (RULES[name](p.sizes, p.recall, b, cap=p.cap) for b in p.budgets)
    again = RULES[name](p.sizes, p.recall, p.budgets[1], cap=p.cap, floor=low)
    assert torch.equal(again, high)


def distinct(weights: list[float], capacity: list[int]) -> bool:
    seats = [w / (2 * j + 1) for w, c in zip(weights, capacity, strict=True) for j in range(c)]
    return len(set(seats)) == len(seats)


@given(st.data())
def test_relabelling_the_classes_relabels_the_quotas(data: st.DataObject) -> None:
    """To the last sample, where no two seats tie."""
    k = data.draw(st.integers(1, 8))
    weights = data.draw(st.lists(st.floats(0.01, 100), min_size=k, max_size=k))
    capacity = data.draw(st.lists(st.integers(0, 30), min_size=k, max_size=k))
    assume(distinct(weights, capacity))
    budget = data.draw(st.integers(0, sum(capacity)))
    order = torch.tensor(data.draw(st.permutations(range(k))))
    quota = quotas.apportion(weights, capacity, budget)
    other = quotas.apportion(
        torch.tensor(weights, dtype=torch.float64)[order], torch.tensor(capacity)[order], budget
    )
    assert torch.equal(other, quota[order])


@given(problems(), st.permutations(range(9)), names)
def test_relabelling_moves_only_what_ties(p: Problem, order: list[int], name: str) -> None:
    """Classes alike in all but their index get, together, the same."""
    order = [k for k in order if k < len(p.sizes)]
    budget = p.budgets[1]
    quota = RULES[name](p.sizes, p.recall, budget)
    other = RULES[name]([p.sizes[k] for k in order], [p.recall[k] for k in order], budget)
    # Means over classes are rounded in another order, which may decide a tie another way.
    assert int((other - quota[order]).abs().max()) <= 1 + (name == "Minimax")


@given(
    problems(known=True),
    st.integers(0, 8),
    fractions,
    st.sampled_from(["drop", "drop_reference", "rcap", "difficulty"]),
)
def test_a_class_recalled_better_gets_no_more_and_the_others_no_less(
    p: Problem, which: int, better: float, name: str
) -> None:
    k = which % len(p.sizes)
    better = max(better, p.recall[k])
    others = [n and 1 - r for i, (n, r) in enumerate(zip(p.sizes, p.recall, strict=True)) if i != k]
    assume(any(others))  # without any error left all classes count alike
    quota = RULES[name](p.sizes, p.recall, p.budgets[1], **p.limits)
    recall = [better if i == k else r for i, r in enumerate(p.recall)]
    after = RULES[name](p.sizes, recall, p.budgets[1], **p.limits)
    change = after - quota
    assert int(change[k]) <= 0
    change[k] = 0
    assert bool((change >= 0).all())


@given(st.data())
def test_only_ratios_of_weights_count(data: st.DataObject) -> None:
    k = data.draw(st.integers(1, 8))
    weights = data.draw(st.lists(st.floats(0, 1e6, allow_subnormal=False), min_size=k, max_size=k))
    capacity = data.draw(st.lists(st.integers(0, 500), min_size=k, max_size=k))
    budget = data.draw(st.integers(0, sum(capacity)))
    assume(all(w == 0 or w > 1e-100 for w in weights))
    factor = 2.0 ** data.draw(st.integers(-300, 300))
    quota = quotas.apportion(weights, capacity, budget)
    assert torch.equal(quotas.apportion([w * factor for w in weights], capacity, budget), quota)


@given(problems(limits=False, known=True), st.integers(2, 50), names)
def test_a_larger_sample_of_the_same_population_has_the_same_shares(
    p: Problem, times: int, name: str
) -> None:
    quota = RULES[name](p.sizes, p.recall, p.budgets[1])
    larger = RULES[name]([n * times for n in p.sizes], p.recall, p.budgets[1] * times)
    # What rounds down in K - 1 small classes may all land in a large one: a quota is within (K + 1) / 2 of
    # the real numbers that both share, and one of the larger sample, divided, within half of that.
    assert float((larger / times - quota).abs().max()) <= 0.75 * (len(p.sizes) + 1)


@given(problems(limits=False), st.integers(0, 100), names)
def test_empty_classes_change_nothing(p: Problem, seed: int, name: str) -> None:
    where = seed % (len(p.sizes) + 1)
    recall = [NAN, 0.0, 0.3, 1.0][seed % 4]
    quota = RULES[name](p.sizes, p.recall, p.budgets[0]).tolist()
    sizes, rates = list(p.sizes), list(p.recall)
    sizes.insert(where, 0)
    rates.insert(where, recall)
    more = RULES[name](sizes, rates, p.budgets[0]).tolist()
    assert more.pop(where) == 0
    assert sum(more) == sum(quota)
    assert max(abs(a - b) for a, b in zip(more, quota, strict=True)) <= 1


# --- Minimax --------------------------------------------------------------------------------------

runs = st.lists(st.lists(fractions, min_size=4, max_size=4), min_size=1, max_size=6)


@given(runs, st.integers(0, 5), st.floats(0.01, 50), st.floats(0, 0.9))
def test_minimax_goes_on_from_its_state(
    recalls: list[list[float]], cut: int, step: float, leak: float
) -> None:
    whole, resumed = quotas.Minimax(step, leak), quotas.Minimax(step, leak)
    for i, recall in enumerate(recalls):
        if i == cut:
            state = resumed.state_dict()
            resumed = quotas.Minimax(step, leak)
            resumed.load_state_dict(state)
        found = [quota([40, 30, 20, 10], recall, 50) for quota in (whole, resumed)]
        assert torch.equal(*found)


@given(runs, st.floats(0.01, 50), st.floats(0, 0.9))
def test_minimax_against_a_loop(recalls: list[list[float]], step: float, leak: float) -> None:
    quota = quotas.Minimax(step, leak, worst=1e-9)
    log_weight = [0.0] * 4
    for recall in recalls:
        found = quota([40, 30, 20, 10], recall, 50)
        mean = sum(recall) / 4
        log_weight = [
            (1 - leak) * w + step * (mean - r) for w, r in zip(log_weight, recall, strict=True)
        ]
        torch.testing.assert_close(
            quota.log_weight, torch.tensor(log_weight, dtype=torch.float64), rtol=1e-9, atol=1e-9
        )
        assert abs(float(quota.log_weight.sum())) < 1e-9 * (1 + step * len(recalls))
        assert int(found.sum()) == 50


@given(
    st.lists(st.tuples(st.integers(0, 40), fractions), min_size=2, max_size=8),
    st.floats(0.1, 60),
    st.floats(0.05, 1),
)
def test_the_bound_of_minimax_against_a_slow_search(
    classes: list[tuple[int, float]], step: float, worst: float
) -> None:
    """No share above p / worst, the classes below it in the ratio of their weights."""
    sizes = torch.tensor([size for size, _ in classes])
    recall = [rate for _, rate in classes]
    total = int(sizes.sum())
    assume(total)
    rule, free = quotas.Minimax(step, 0.0, worst), quotas.Minimax(step, 0.0, 1e-9)
    rule(sizes, recall, total // 2)
    free(sizes, recall, total // 2)
    p = [size / total for size in sizes.tolist()]
    log_weight = free.log_weight.tolist()
    low, high = min(log_weight) - 1, max(log_weight) + 1
    for _ in range(200):  # the highest cut of the log-weights whose shares keep within the bound
        cut = (low + high) / 2
        weight = [q * math.exp(min(w, cut) - cut) for q, w in zip(p, log_weight, strict=True)]
        fits = max(w / q for w, q in zip(weight, p, strict=True) if q) <= sum(weight) / worst
        low, high = (cut, high) if fits else (low, cut)
    cut = max(low, min(w for w, q in zip(log_weight, p, strict=True) if q))
    expected = [min(w, cut) for w in log_weight]
    assert rule.log_weight.tolist() == pytest.approx(expected, abs=1e-6)


@given(st.lists(st.tuples(st.integers(-1, 5), st.booleans()), max_size=60))
def test_of_subset_counts(samples: list[tuple[int, bool]]) -> None:
    target = torch.tensor([label for label, _ in samples], dtype=torch.int64)
    chosen = [i for i, (label, kept) in enumerate(samples) if kept and label >= 0]
    found = quotas.of_subset(target, torch.tensor(chosen, dtype=torch.int64), num_classes=6)
    labels = [samples[i][0] for i in chosen]
    assert found.tolist() == [labels.count(k) for k in range(6)]
