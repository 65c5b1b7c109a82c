"""What holds for ratios, intervals and tests whatever the models."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from test_statistics import slow_alpha, slow_bh, slow_holm
from torch import Tensor

from lightning_fairprune import statistics

NAN = math.nan
plain = st.floats(-100, 100).map(lambda v: round(v, 6))
values = st.lists(st.one_of(plain, st.just(NAN)), max_size=9)


def apart(values: list[float]) -> bool:
    known = [v for v in values if not math.isnan(v)]
    return len(known) > 1 and max(known) - min(known) > 1e-3


@st.composite
def recalls(draw: st.DrawFn) -> Tensor:
    found = draw(st.lists(st.floats(0.05, 1), min_size=2, max_size=8))
    assume(max(found) - min(found) > 1e-3)
    return torch.tensor(found, dtype=torch.float64)


# --- the intensification ratio --------------------------------------------------------------------


@given(recalls(), st.floats(-0.9, 3), st.floats(0.05, 0.95))
def test_closed_form(before: Tensor, alpha: float, accuracy: float) -> None:
    """Balances made alpha times as wide around another accuracy have the ratio alpha."""
    balance = before / before.mean() - 1
    after = accuracy * (1 + alpha * balance)
    assume(bool(((after >= 0) & (after <= 1)).all()))
    assert float(statistics.intensification_ratio(before, after)) == pytest.approx(alpha, abs=1e-9)
    slope, r2 = statistics.intensification_line(before[None], after[None])
    assert slope == pytest.approx(alpha, abs=1e-9)
    assert math.isnan(r2) or r2 == pytest.approx(1) or abs(alpha) < 1e-6


@given(recalls(), st.data())
def test_invariances(before: Tensor, data: st.DataObject) -> None:
    k = len(before)
    after = torch.tensor(
        data.draw(st.lists(st.floats(0.05, 1), min_size=k, max_size=k)), dtype=torch.float64
    )
    alpha = float(statistics.intensification_ratio(before, after))
    assert alpha == pytest.approx(slow_alpha(before.tolist(), after.tolist()), abs=1e-9)
    order = torch.tensor(data.draw(st.permutations(range(k))))
    near = pytest.approx(alpha, rel=1e-6, abs=1e-9)
    assert float(statistics.intensification_ratio(before[order], after[order])) == near
    # Normalised balances do not know how good a model is.
    weaker = data.draw(st.floats(0.1, 1))
    assert float(statistics.intensification_ratio(before * weaker, after)) == near
    assert float(statistics.intensification_ratio(before, after * weaker)) == near
    unseen = torch.tensor([NAN], dtype=torch.float64)
    there = torch.tensor([0.5], dtype=torch.float64)
    for one, other in ((unseen, there), (there, unseen)):
        pair = torch.cat([before, one]), torch.cat([after, other])
        assert float(statistics.intensification_ratio(*pair)) == near
    means = {"accuracy_before": float(before.mean()), "accuracy_after": float(after.mean())}
    assert float(statistics.intensification_ratio(before, after, **means)) == near
    stacked = statistics.intensification_ratio(
        torch.stack([before, before]), torch.stack([after, before])
    )
    assert stacked.tolist() == [near, pytest.approx(1)]


# --- intervals ------------------------------------------------------------------------------------


@given(values, st.floats(0.5, 0.999), plain)
def test_intervals(found: list[float], level: float, shift: float) -> None:
    known = [v for v in found if not math.isnan(v)]
    summary = statistics.summarise(found, level)
    assert summary.num_models == len(known)
    if len(known) < 2:
        assert summary.label == "?"
        assert math.isnan(summary.low)
        return
    assert summary.mean == pytest.approx(sum(known) / len(known), abs=1e-9)
    assert summary.low <= summary.mean <= summary.high
    assert summary.high - summary.mean == pytest.approx(summary.mean - summary.low, abs=1e-9)
    half = float(statistics.half_widths([[v] for v in found], level))
    assert half == pytest.approx(summary.high - summary.mean, abs=1e-9)
    wider = statistics.summarise(found, (1 + level) / 2)
    assert wider.low <= summary.low
    assert wider.high >= summary.high
    reordered = statistics.summarise(found[::-1], level)
    assert reordered.low == pytest.approx(summary.low, abs=1e-9)
    moved = statistics.summarise([v + shift for v in found], level)
    assert moved.low == pytest.approx(summary.low + shift, abs=1e-6)
    assert moved.sd == pytest.approx(summary.sd, abs=1e-6)
    if apart(found):
        expected = "<" if summary.high < 1 else ">" if summary.low > 1 else "?"
        assert summary.label == expected
        mirrored = statistics.summarise([-v for v in found], level, against=-1.0)
        assert mirrored.label == {"<": ">", ">": "<", "?": "?"}[expected]


# --- tests ----------------------------------------------------------------------------------------

two = st.integers(2, 8).flatmap(
    lambda n: st.tuples(*(st.lists(plain, min_size=n, max_size=n) for _ in range(2)))
)


@pytest.mark.parametrize("test", [statistics.paired_test, statistics.independent_test])
@given(found=two, shift=plain)
def test_t_tests(test: Any, found: tuple[list[float], list[float]], shift: float) -> None:
    x, y = found
    assume(apart(x) and apart(y) and apart([a - b for a, b in zip(x, y, strict=True)]))
    both, less, greater = (test(x, y, way) for way in ("two-sided", "less", "greater"))
    assert 0 <= float(both.p) <= 1
    assert float(less.p + greater.p) == pytest.approx(1)
    assert float(both.p) == pytest.approx(2 * min(float(less.p), float(greater.p)))
    swapped = test(y, x)
    assert float(swapped.statistic) == pytest.approx(-float(both.statistic))
    assert float(swapped.p) == pytest.approx(float(both.p))
    assert float(test(y, x, "less").p) == pytest.approx(float(greater.p))
    moved = test([v + shift for v in x], [v + shift for v in y])
    assert float(moved.p) == pytest.approx(float(both.p), rel=1e-3, abs=1e-9)
    backwards = test(x[::-1], y[::-1])
    assert float(backwards.p) == pytest.approx(float(both.p), rel=1e-6)


P_VALUES = st.lists(
    st.one_of(st.just(NAN), st.floats(0, 1), st.sampled_from([0.0, 0.01, 0.05, 1.0])), max_size=12
)


@given(P_VALUES, st.randoms(use_true_random=False))
def test_adjusted_p_values(p: list[float], random: Any) -> None:
    bonferroni, holm, bh = (
        adjust(p).tolist()
        for adjust in (statistics.bonferroni, statistics.holm, statistics.benjamini_hochberg)
    )
    assert holm == pytest.approx(slow_holm(p), nan_ok=True)
    assert bh == pytest.approx(slow_bh(p), nan_ok=True)
    slack = 1e-12
    for raw, *adjusted in zip(p, bh, holm, bonferroni, strict=True):
        if math.isnan(raw):
            assert all(map(math.isnan, adjusted))
        else:
            ascending = [raw, *adjusted, 1.0]
            assert all(a <= b + slack for a, b in itertools.pairwise(ascending))
    known = sorted((a, b, c) for a, b, c in zip(p, holm, bh, strict=True) if not math.isnan(a))
    for column in (1, 2):
        adjusted = [row[column] for row in known]
        assert all(a <= b + slack for a, b in itertools.pairwise(adjusted))
    order = random.sample(range(len(p)), len(p))
    again = statistics.holm([p[i] for i in order]).tolist()
    assert again == pytest.approx([holm[i] for i in order], nan_ok=True)
