"""Bounds of losses of recall and confidence sequences: hand values, oracles, whole enumerations, simulations."""

from __future__ import annotations

import importlib.util
import itertools
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lightning_fairprune import statistics
from lightning_fairprune.statistics import (
    clopper_pearson,
    confidence_sequence,
    level_at_epoch,
    loss_bounds,
    loss_bounds_from_counts,
    loss_test,
    worst_recall_interval,
)

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "coverage.py"


@pytest.fixture(scope="module")
def coverage() -> ModuleType:
    if not SCRIPT.is_file():
        pytest.skip("an installed package has no benchmarks beside it")
    spec = importlib.util.spec_from_file_location("coverage_of_bounds", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class TestClopperPearson:
    @pytest.mark.parametrize("n", [1, 7, 100])
    def test_ends_have_closed_forms(self, n: int) -> None:
        low, high = clopper_pearson([n, 0], [n, 0 + n], 0.9)
        assert low[0].item() == pytest.approx(0.05 ** (1 / n), rel=1e-12)
        assert high[1].item() == pytest.approx(1 - 0.05 ** (1 / n), rel=1e-9)
        assert (high[0].item(), low[1].item()) == (1, 0)

    @pytest.mark.parametrize(("s", "n"), [(0, 5), (3, 5), (5, 5), (450, 500)])
    def test_is_that_of_scipy(self, s: int, n: int) -> None:
        expected = stats.binomtest(s, n).proportion_ci(0.95, "exact")
        low, high = clopper_pearson([s], [n])
        assert (low.item(), high.item()) == pytest.approx((expected.low, expected.high), rel=1e-9)

    def test_nothing_is_known_of_a_class_without_samples(self) -> None:
        low, high = clopper_pearson([0], [0])
        assert low.isnan().all()
        assert high.isnan().all()


def test_the_worst_recall_lies_in_its_interval() -> None:
    """Ten classes, of which one or all are worst."""
    generator = torch.Generator().manual_seed(2)
    n = torch.full((10,), 200)
    for recall in ([0.5] + [0.8] * 9, [0.7] * 10):
        share = torch.tensor(recall, dtype=torch.float64)
        found = [
            worst_recall_interval(torch.binomial(n.double(), share, generator=generator), n)
            for _ in range(400)
        ]
        held = sum(low <= min(recall) <= high for low, high in found) / len(found)
        assert held > 0.93
    assert worst_recall_interval([45, 0], [50, 0]) == pytest.approx(
        [end.item() for end in clopper_pearson([45], [50])]
    )


class TestPairedBound:
    @pytest.mark.parametrize("level", [0.9, 0.95, 0.999])
    @pytest.mark.parametrize("n", [1, 20, 3000])
    def test_without_a_change_it_has_a_closed_form(self, n: int, level: float) -> None:
        found = loss_bounds([0], [0], [n], level)
        assert found.worst == pytest.approx(1 - (1 - level) ** (1 / n), abs=5e-6)

    def test_one_class_has_one_bound(self) -> None:
        found = loss_bounds([9], [4], [100])
        assert found.each is not None
        assert found.each.item() == found.worst
        assert found.loss.item() == 0.05
        assert found.paired

    def test_all_lost_is_all(self) -> None:
        assert loss_bounds([4], [0], [4]).worst == 1

    def test_all_gained_still_is_no_certainty(self) -> None:
        # P(all n gained) = q^n, and the largest loss with this q is 1 - 2 q.
        found = loss_bounds([0], [10], [10]).worst
        assert found == pytest.approx(1 - 2 * 0.05 ** (1 / 10), abs=1e-5)

    @pytest.mark.parametrize(("n", "level"), [(9, 0.95), (13, 0.8)])
    def test_it_holds_as_often_as_it_says_for_all_probabilities(self, n: int, level: float) -> None:
        """Enumerates all outcomes: the coverage is exact, and not far above the level somewhere."""
        outcomes = [(b, c) for b in range(n + 1) for c in range(n + 1 - b)]
        lost, gained = (torch.tensor(column) for column in zip(*outcomes, strict=True))
        bound = torch.cat(
            [
                loss_bounds([b], [c], [n], level).each
                for b, c in zip(lost.tolist(), gained.tolist(), strict=True)
            ]
        ).numpy()
        covered = []
        for p, q in itertools.product(np.linspace(0, 1, 21), repeat=2):
            if p + q <= 1 + 1e-12:
                rest = max(0.0, 1 - p - q)
                chance = stats.multinomial.pmf(
                    np.array([[b, c, n - b - c] for b, c in outcomes]), n, [p, q, rest]
                )
                covered.append(chance[bound >= p - q - 1e-12].sum())
        assert min(covered) >= level - 1e-9
        assert min(covered) < level + 0.02

    def test_it_rises_with_losses_and_falls_with_gains(self) -> None:
        up = [loss_bounds([b], [5], [60]).worst for b in range(0, 40, 4)]
        down = [loss_bounds([5], [c], [60]).worst for c in range(0, 40, 4)]
        assert up == sorted(up)
        assert down == sorted(down, reverse=True)

    @pytest.mark.parametrize(("b", "c"), [(20, 15), (55, 50), (3, 9)])
    def test_it_is_near_the_normal_approximation_and_below_a_split_of_the_error(
        self, b: int, c: int
    ) -> None:
        n = 500
        found = loss_bounds([b], [c], [n]).worst
        usual = 1.645 * math.sqrt(b + c - (b - c) ** 2 / n) / n
        split = stats.beta.ppf(0.975, b + 1, n - b) - stats.beta.ppf(0.025, c, n - c + 1)
        assert found < split
        assert 1 <= (found - (b - c) / n) / usual < 1.25

    def test_many_samples_are_no_trouble(self) -> None:
        found = loss_bounds([3000], [2900], [100_000]).worst
        assert found == pytest.approx(0.001 + 1.645 * math.sqrt(5900) / 1e5, rel=0.01)

    def test_the_sentence_needs_no_correction_and_all_classes_do(self) -> None:
        lost, gained, n = [9, 2, 0, 3], [4, 2, 0, 0], [100, 100, 0, 80]
        found = loss_bounds(lost, gained, n)
        single = [
            loss_bounds([b], [c], [m]).worst
            for b, c, m in zip(lost, gained, n, strict=True)
            if m > 0
        ]
        assert found.worst == max(single)
        assert loss_bounds(lost, gained, n, each=False).each is None
        third = [
            loss_bounds([b], [c], [m], 1 - 0.05 / 3).worst
            for b, c, m in zip(lost, gained, n, strict=True)
            if m > 0
        ]
        assert found.each[[0, 1, 3]].tolist() == pytest.approx(third, abs=3e-6)
        assert found.each[2].isnan()
        assert found.loss[2].isnan()


class TestBoundFromCounts:
    @given(
        st.integers(1, 14).flatmap(
            lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(0, n))
        )
    )
    @settings(max_examples=20, deadline=None)
    def test_it_is_the_largest_that_the_counts_allow(self, drawn: tuple[int, int, int]) -> None:
        n, before, now = drawn
        possible = [
            loss_bounds([b], [b - before + now], [n]).worst
            for b in range(max(0, before - now), min(before, n - now) + 1)
        ]
        found = loss_bounds_from_counts([now], [n], [before])
        assert found.worst == max(possible)
        assert not found.paired

    def test_of_other_samples_it_takes_both_ends(self) -> None:
        found = loss_bounds_from_counts([40, 30], [50, 40], [90, 70], [100, 80])
        expected = []
        for s, n, t, m in ((40, 50, 90, 100), (30, 40, 70, 80)):
            high = stats.binomtest(t, m).proportion_ci(0.95, "exact").high
            expected.append(high - stats.binomtest(s, n).proportion_ci(0.95, "exact").low)
        assert found.worst == pytest.approx(max(expected))
        assert (found.each > torch.tensor(expected)).all()
        assert found.loss.tolist() == pytest.approx([0.1, 0.125])


class TestLossTest:
    @pytest.mark.parametrize("margin", [0.0, 0.03, -0.02])
    def test_it_agrees_with_the_bound(self, margin: float) -> None:
        lost, gained = [30, 22, 12, 9], [5, 8, 10, 2]
        for b, c in zip(lost, gained, strict=True):
            least = -loss_bounds([c], [b], [100]).worst
            found = loss_test([b], [c], [100], margin)
            assert (found.p.item() <= 0.05) == (least >= margin)

    def test_sums_over_all_outcomes(self) -> None:
        n, b, c, margin = 8, 5, 1, 0.1
        z = stats.norm.isf(0.05)

        def order(up: int, down: int) -> float:
            return up - down + z * math.sqrt(up + down + z * z / 4)

        as_far = [
            (i, j)
            for i in range(n + 1)
            for j in range(n + 1 - i)
            if order(j, i) <= order(c, b) + 1e-9
        ]
        largest = 0.0
        for changed in np.linspace(margin, 1, 400):
            p, q = (changed + margin) / 2, (changed - margin) / 2
            rows = np.array([[i, j, n - i - j] for i, j in as_far])
            chance = stats.multinomial.pmf(rows, n, [p, q, max(0.0, 1 - p - q)])
            largest = max(largest, chance.sum())
        assert loss_test([b], [c], [n], margin).p.item() == pytest.approx(largest, abs=1e-4)

    def test_classes_are_adjusted_by_holm(self) -> None:
        found = loss_test([30, 12, 0, 20], [5, 10, 0, 3], [100, 100, 0, 100])
        assert found.p[2].isnan()
        assert torch.equal(found.adjusted.nan_to_num(-1), statistics.holm(found.p).nan_to_num(-1))


class TestSequence:
    @pytest.mark.parametrize("n", [1, 10, 5000])
    def test_ends_have_closed_forms(self, n: int) -> None:
        low, high = confidence_sequence([n, 0], [n, n], 0.9)
        assert low[0].item() == pytest.approx((0.1 / (n + 1)) ** (1 / n), rel=1e-9)
        assert high[1].item() == pytest.approx(1 - (0.1 / (n + 1)) ** (1 / n), rel=1e-6)
        assert (high[0].item(), low[1].item()) == (1, 0)

    def test_without_a_trial_all_is_possible(self) -> None:
        low, high = confidence_sequence([[0]], [[0]])
        assert (low.tolist(), high.tolist()) == ([[0.0]], [[1.0]])

    def test_likelihood_ratio_is_1_over_alpha_at_the_ends(self) -> None:
        s, n = 37, 50
        for p in torch.stack(confidence_sequence([s], [n])).flatten().tolist():
            log = math.lgamma(s + 1) + math.lgamma(n - s + 1) - math.lgamma(n + 2)
            log -= s * math.log(p) + (n - s) * math.log(1 - p)
            assert log == pytest.approx(math.log(20), abs=1e-9)

    def test_it_is_wider_than_one_look(self) -> None:
        s, n = torch.arange(0, 501), torch.full((501,), 500)
        (low, high), (first, last) = confidence_sequence(s, n), clopper_pearson(s, n)
        assert (low <= first).all()
        assert (high >= last).all()
        wide, one = (high - low)[450].item(), (last - first)[450].item()
        assert 1.6 < wide / one < 1.9

    def test_errors_of_all_epochs_sum_to_that_of_the_level(self) -> None:
        errors = [1 - level_at_epoch(0.95, t) for t in range(1, 20_000)]
        assert 0.0499 < sum(errors) < 0.05


BAD: dict[str, tuple[Any, str]] = {
    "a half": (lambda: clopper_pearson([0.5], [1]), "`successes` must be whole numbers"),
    "below 0": (lambda: loss_bounds([-1], [0], [9]), "`lost` must be whole numbers"),
    "too many": (lambda: loss_bounds([5], [5], [9]), r"`lost \+ gained` must be at most"),
    "shapes": (lambda: loss_bounds([5], [5, 1], [9]), r"must have one shape, got \[1\] and \[2\]"),
    "no sample": (lambda: worst_recall_interval([0], [0]), "must hold a sample"),
    "axes": (lambda: loss_bounds([[1]], [[1]], [[9]]), r"must be \[K\]"),
    "nothing": (lambda: loss_bounds([0], [0], [0]), "must hold a sample"),
    "nothing in common": (
        lambda: loss_bounds_from_counts([0, 1], [0, 1], [1, 0], [1, 0]),
        "must have a sample",
    ),
    "low level": (lambda: loss_bounds([1], [1], [9], 0.5), r"`level` must be in \(1/2, 1\)"),
    "level": (lambda: clopper_pearson([1], [1], 1.0), r"`level` must be in \(0, 1\)"),
    "level of a sequence": (lambda: confidence_sequence([1], [1], 0.0), "`level` must be"),
    "level of epochs": (lambda: level_at_epoch(1.0, 1), "`level` must be"),
    "epoch": (lambda: level_at_epoch(0.9, 0), "`epoch` must be at least 1"),
    "reference": (lambda: loss_bounds_from_counts([1], [2], [3]), "`tp_reference` must be at most"),
    "margin": (lambda: loss_test([1], [1], [9], 1.0), "`margin` must be in"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_named(case: str) -> None:
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call()


def test_bounds_hold_as_often_as_they_say(coverage: ModuleType) -> None:
    """A slice of the script, with room for 2,000 simulations; all its figures are in the docs."""
    generator = np.random.default_rng(1)
    n, shares, simulations = 200, (0.05, 0.03), 2000
    lost, gained = coverage.changes(generator, n, shares, (simulations, 4))
    one = coverage.holds(lost[:, 0], gained[:, 0], n, 0.02, 0.05).mean()
    all_four = coverage.holds(lost, gained, n, 0.02, 0.05 / 4).all(1).mean()
    assert 0.94 < one < 0.985
    assert 0.94 < all_four < 0.99


def test_a_sequence_holds_at_the_worst_moment() -> None:
    generator = torch.Generator().manual_seed(0)
    n, p = 300, 0.6
    trials = torch.arange(1, n + 1)
    right = (torch.rand(5000, n, generator=generator) < p).cumsum(1)
    # The interval of every number of trials and of successes, looked up below.
    every = trials[:, None].expand(n, n + 1)
    possible = torch.arange(n + 1).minimum(every)
    looked = {}
    for name, interval in (("sequence", confidence_sequence), ("one look", clopper_pearson)):
        low, high = (end[trials - 1, right] for end in interval(possible, every))
        looked[name] = ((low <= p) & (p <= high)).all(1).double().mean().item()
    assert 0.94 < looked["sequence"] < 0.985
    assert looked["one look"] < 0.85
