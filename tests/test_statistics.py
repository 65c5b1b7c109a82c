"""Statistics over models against scipy, slow loops, hand values and the published figures."""

from __future__ import annotations

import csv
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from lightning_fairprune import recalls
from lightning_fairprune.statistics import (
    TTest,
    all_pairs_tests,
    benjamini_hochberg,
    bonferroni,
    class_change_test,
    consecutive_tests,
    holm,
    independent_test,
    intensification_line,
    intensification_ratio,
    paired_test,
    summarise,
)

NAN = math.nan
ALTERNATIVES = ("two-sided", "less", "greater")
FILE = "recall_distortion_cifar10_resnet56_mp.csv"

# Model 0 of Good et al., Figure 5, magnitude pruning, ratio 50.
GOLDEN_BEFORE = [0.912, 0.962, 0.865, 0.782, 0.895, 0.830, 0.932, 0.925, 0.949, 0.929]
GOLDEN_AFTER = [0.815, 0.937, 0.689, 0.672, 0.760, 0.726, 0.863, 0.832, 0.880, 0.888]


def slow_alpha(before: list[float], after: list[float]) -> float:
    a, b = sum(before) / len(before), sum(after) / len(after)
    over = under = 0.0
    for r, s in zip(before, after, strict=True):
        over += (r - a) / a * (s - b) / b
        under += ((r - a) / a) ** 2
    return over / under


def models(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class TestRatio:
    def test_golden_model(self) -> None:
        alpha = intensification_ratio(GOLDEN_BEFORE, GOLDEN_AFTER)
        assert alpha.dtype == torch.float64
        assert alpha.shape == ()
        assert round(alpha.item(), 6) == 1.635293
        assert alpha.item() == pytest.approx(slow_alpha(GOLDEN_BEFORE, GOLDEN_AFTER), rel=1e-12)

    def test_example_of_the_paper(self) -> None:
        assert intensification_ratio([0.9, 0.7], [0.7, 0.5]).item() == pytest.approx(4 / 3)

    def test_any_leading_axes(self) -> None:
        before, after = models(0, 3, 4, 5), models(1, 3, 4, 5)
        alpha = intensification_ratio(before, after)
        assert alpha.shape == (3, 4)
        for i in range(3):
            for j in range(4):
                slow = slow_alpha(before[i, j].tolist(), after[i, j].tolist())
                assert alpha[i, j].item() == pytest.approx(slow, rel=1e-9)

    def test_is_the_slope_of_scipy_and_of_recalls(self) -> None:
        before, after = models(2, 7), models(3, 7)
        x, y = before / before.mean() - 1, after / after.mean() - 1
        alpha = intensification_ratio(before, after).item()
        assert alpha == pytest.approx(stats.linregress(x, y).slope)  # the means are 0
        assert alpha == recalls.intensification(after, before).item()

    def test_given_accuracies(self) -> None:
        # Balances .2/.8, 0 before; .3/.6, -.1/.6 after: (.25 * .5) / .0625.
        alpha = intensification_ratio(
            [1.0, 0.8], [0.9, 0.5], accuracy_before=0.8, accuracy_after=0.6
        )
        assert alpha.item() == pytest.approx(2.0)
        before, after = models(4, 3, 5), models(5, 3, 5)
        given_means = intensification_ratio(
            before, after, accuracy_before=before.mean(-1), accuracy_after=after.mean(-1).tolist()
        )
        assert given_means.tolist() == pytest.approx(intensification_ratio(before, after).tolist())

    def test_a_class_without_support_is_left_out_of_both(self) -> None:
        whole = intensification_ratio([0.9, 0.7, 0.6], [0.8, 0.5, 0.3])
        assert intensification_ratio([0.9, 0.7, 0.6, NAN], [0.8, 0.5, 0.3, 0.1]) == whole
        assert intensification_ratio([0.9, 0.7, 0.6, 0.1], [0.8, 0.5, 0.3, NAN]) == whole

    @pytest.mark.parametrize(
        ("before", "after"),
        [
            ([0.0, 0.0], [0.5, 0.4]),  # accuracy 0 before
            ([0.5, 0.4], [0.0, 0.0]),  # and after
            ([0.7, 0.7, 0.7], [0.5, 0.4, 0.3]),  # no balance before
            ([NAN, 0.7], [0.5, NAN]),  # no class in both
        ],
    )
    def test_nan_where_undefined(self, before: list[float], after: list[float]) -> None:
        assert intensification_ratio(before, after).isnan()
        assert all(map(math.isnan, intensification_line([before], [after])))

    def test_takes_tensors_arrays_and_sequences_of_either(self) -> None:
        want = intensification_ratio([GOLDEN_BEFORE] * 2, [GOLDEN_AFTER] * 2)
        before, after = torch.tensor(GOLDEN_BEFORE, requires_grad=True), torch.tensor(GOLDEN_AFTER)
        got = intensification_ratio([before, before], (after, after))
        assert not got.requires_grad
        assert got.tolist() == pytest.approx(want.tolist(), rel=1e-5)  # float32 recalls
        arrays = np.array([GOLDEN_BEFORE] * 2), np.array([GOLDEN_AFTER] * 2)
        arrays[0].flags.writeable = False
        assert torch.equal(intensification_ratio(*arrays), want)


class TestLine:
    def test_against_scipy(self) -> None:
        before, after = models(0, 6, 5), models(1, 6, 5)
        x = (before / before.mean(-1, keepdim=True) - 1).flatten().numpy()
        y = (after / after.mean(-1, keepdim=True) - 1).flatten().numpy()
        slope, r2 = intensification_line(before, after)
        assert slope == pytest.approx(np.linalg.lstsq(x[:, None], y, rcond=None)[0][0])
        assert r2 == pytest.approx(stats.pearsonr(x, y).statistic ** 2)

    def test_correlation_is_about_the_mean(self) -> None:
        """With accuracies that are no mean recalls, the points have a mean of their own."""
        before, after = models(2, 4, 5), models(3, 4, 5)
        slope, r2 = intensification_line(
            before, after, accuracy_before=0.3, accuracy_after=[0.4] * 4
        )
        x, y = (before / 0.3 - 1).flatten(), (after / 0.4 - 1).flatten()
        assert slope == pytest.approx(float(x @ y / (x @ x)))
        assert r2 == pytest.approx(stats.pearsonr(x, y).statistic ** 2)

    def test_one_model_has_its_own_ratio(self) -> None:
        slope, _ = intensification_line([GOLDEN_BEFORE], [GOLDEN_AFTER])
        assert slope == pytest.approx(1.635293, abs=5e-7)

    def test_what_is_unknown_is_left_out(self) -> None:
        before, after = models(4, 3, 5), models(5, 3, 5)
        want = intensification_line(before[:2, :4], after[:2, :4])
        after[2] = 0  # a model with accuracy 0 has no balances
        before[0, 4] = NAN
        after[1, 4] = NAN
        assert intensification_line(before, after) == pytest.approx(want)

    def test_nothing_moved(self) -> None:
        slope, r2 = intensification_line([[0.9, 0.5]], [[0.6, 0.6]])
        assert slope == 0
        assert math.isnan(r2)


class TestSummary:
    @pytest.mark.parametrize("level", [0.5, 0.95, 0.99])
    def test_interval_is_scipys(self, level: float) -> None:
        alpha = models(0, 12)
        found = summarise(alpha, level)
        low, high = stats.t.interval(level, 11, alpha.mean(), stats.sem(alpha))
        assert (found.low, found.high) == pytest.approx((low, high), rel=1e-12)
        assert found.mean == pytest.approx(alpha.mean().item())
        assert found.sd == pytest.approx(alpha.std().item())
        assert found.num_models == 12

    def test_labels(self) -> None:
        above = [1.4, 1.5, 1.6]
        assert summarise(above, 0.95).label == ">"
        assert summarise(above, 0.99).label == "?"  # t_{.995, 2} = 9.925, so 1.5 -+ .573
        assert summarise(above, 0.95, against=2).label == "<"
        assert summarise(above, 0.95, against=1.5).label == "?"

    def test_undefined_ratios_are_left_out(self) -> None:
        assert summarise([1.4, NAN, 1.5, 1.6]) == summarise([1.4, 1.5, 1.6])

    @pytest.mark.parametrize("values", [[], [NAN], [1.5], [NAN, 1.5]])
    def test_below_two_models(self, values: list[float]) -> None:
        found = summarise(values)
        assert found.num_models == (1.5 in values)
        assert found.mean == pytest.approx(1.5 if 1.5 in values else NAN, nan_ok=True)
        assert all(map(math.isnan, (found.sd, found.low, found.high)))
        assert found.label == "?"

    @pytest.mark.parametrize(("value", "label"), [(0.1, "?"), (0.2, ">"), (0.05, "<")])
    def test_no_spread(self, value: float, label: str) -> None:
        """The mean of three .1 is not quite .1."""
        found = summarise([value] * 3, against=0.1)
        assert found.label == label
        assert found.low == pytest.approx(value)

    def test_errors(self) -> None:
        with pytest.raises(ValueError, match=r"`alpha` must be \[M\].*got \[1, 2\]"):
            summarise([[1.0, 2.0]])  # type: ignore[list-item]
        for level in (0.0, 1.0, 99):
            with pytest.raises(ValueError, match=r"`level` must be in \(0, 1\), got"):
                summarise([1.0, 2.0], level)


class TestPaired:
    @pytest.mark.parametrize("alternative", ALTERNATIVES)
    def test_scipys(self, alternative: Any) -> None:
        x, y = models(0, 3, 4, 9), models(1, 3, 4, 9) + 0.2
        got = paired_test(x, y, alternative)
        want = stats.ttest_rel(x, y, axis=-1, alternative=alternative)
        np.testing.assert_allclose(got.statistic, want.statistic, rtol=1e-9)
        np.testing.assert_allclose(got.p, want.pvalue, rtol=1e-9)
        assert torch.equal(got.adjusted, (got.p * 12).clamp(max=1))

    def test_leaves_out_as_scipy_omits(self) -> None:
        x, y = models(0, 9), models(1, 9)
        x[2], y[2], y[5] = NAN, NAN, NAN
        got = paired_test(x, y)
        want = stats.ttest_rel(x, y, nan_policy="omit")
        assert got.p.item() == pytest.approx(want.pvalue)
        assert got.statistic.item() == pytest.approx(want.statistic)

    @pytest.mark.parametrize("alternative", ALTERNATIVES)
    def test_no_spread(self, alternative: Any) -> None:
        """(.3 + .1) - .3 and (.7 + .1) - .7 differ in the last digits only."""
        x = torch.tensor([0.3, 0.7, 0.9], dtype=torch.float64)
        above = paired_test(x + 0.1, x, alternative)
        assert above.statistic == math.inf
        assert above.p == (1 if alternative == "less" else 0)
        below = paired_test(x, x + 0.1, alternative)
        assert below.statistic == -math.inf
        assert below.p == (1 if alternative == "greater" else 0)
        same = paired_test(x, x + 1e-16, alternative)
        assert same.statistic.isnan()
        assert same.p.isnan()
        assert same.adjusted.isnan()

    @pytest.mark.parametrize("values", [[], [1.0], [1.0, NAN], [NAN, NAN]])
    def test_below_two_models(self, values: list[float]) -> None:
        found = paired_test(values, [0.5] * len(values))
        assert found.statistic.isnan()
        assert found.p.isnan()

    def test_errors(self) -> None:
        with pytest.raises(ValueError, match=r"`x` and `y` must have one shape .* \[2\] and \[3\]"):
            paired_test([1.0, 2.0], [1.0, 2.0, 3.0])
        with pytest.raises(ValueError, match=r"`x` and `y` must have one shape .* \[\] and \[\]"):
            paired_test(torch.tensor(1.0), torch.tensor(1.0))
        with pytest.raises(
            ValueError, match=r"`alternative` must be one of .*'less'.*, got 'below'"
        ):
            paired_test([1.0, 2.0], [1.0, 3.0], "below")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"`y` must be finite, or NaN .* it holds inf"):
            paired_test([1.0, 2.0], [1.0, math.inf])


class TestIndependent:
    @pytest.mark.parametrize("equal_var", [False, True])
    @pytest.mark.parametrize("alternative", ALTERNATIVES)
    def test_scipys(self, alternative: Any, equal_var: bool) -> None:
        x, y = models(0, 3, 4, 9), 2 * models(1, 3, 4, 5)
        got = independent_test(x, y, alternative, equal_var=equal_var)
        want = stats.ttest_ind(x, y, axis=-1, equal_var=equal_var, alternative=alternative)
        np.testing.assert_allclose(got.statistic, want.statistic, rtol=1e-9)
        np.testing.assert_allclose(got.p, want.pvalue, rtol=1e-9)
        assert torch.equal(got.adjusted, (got.p * 12).clamp(max=1))

    @pytest.mark.parametrize("equal_var", [False, True])
    def test_leaves_out_as_scipy_omits(self, equal_var: bool) -> None:
        x, y = models(0, 9), models(1, 6)
        x[2], y[5] = NAN, NAN
        got = independent_test(x, y, equal_var=equal_var)
        want = stats.ttest_ind(x, y, equal_var=equal_var, nan_policy="omit")
        assert got.p.item() == pytest.approx(want.pvalue)

    @pytest.mark.parametrize("equal_var", [False, True])
    def test_no_spread(self, equal_var: bool) -> None:
        def test(x: list[float], y: list[float]) -> TTest:
            return independent_test(x, y, "greater", equal_var=equal_var)

        above = test([0.3] * 3, [0.1] * 3)
        assert (above.statistic.item(), above.p.item()) == (math.inf, 0)
        below = test([0.1] * 3, [0.3] * 3)
        assert (below.statistic.item(), below.p.item()) == (-math.inf, 1)
        assert test([0.1] * 3, [0.1 + 1e-17] * 4).p.isnan()
        # One side without spread is an ordinary test: error .1 / sqrt(3) with 2 degrees of freedom.
        if not equal_var:
            one = test([0.4, 0.5, 0.6], [0.3] * 3)
            assert one.statistic.item() == pytest.approx(0.2 / (0.1 / math.sqrt(3)))
            assert one.p.item() == pytest.approx(stats.t.sf(2 * math.sqrt(3), 2))

    def test_one_model_on_one_side(self) -> None:
        assert independent_test([1.0, 2.0, 3.0], [5.0]).p.isnan()
        pooled = independent_test([1.0, 2.0, 3.0], [5.0], equal_var=True)
        # Variance 1 with 2 degrees of freedom, standard error sqrt(1 + 1/3).
        assert pooled.statistic.item() == pytest.approx(-3 / math.sqrt(4 / 3))
        assert pooled.p.item() == pytest.approx(2 * stats.t.sf(3 / math.sqrt(4 / 3), 2))

    @pytest.mark.parametrize("equal_var", [False, True])
    @pytest.mark.parametrize(("x", "y"), [([1.0], [2.0]), ([], [1.0, 2.0]), ([NAN], [1.0, 2.0])])
    def test_too_few_models(self, x: list[float], y: list[float], equal_var: bool) -> None:
        for found in (
            independent_test(x, y, equal_var=equal_var),
            independent_test(y, x, equal_var=equal_var),
        ):
            assert found.p.isnan()
            assert found.statistic.isnan()

    def test_errors(self) -> None:
        with pytest.raises(ValueError, match=r"must agree in all but the last axis.*\[2, 1\] and"):
            independent_test([[1.0], [2.0]], [1.0, 2.0])


class TestFamilies:
    def test_consecutive_against_a_loop(self) -> None:
        alphas = models(0, 4, 8) + torch.arange(4)[:, None] * 0.1
        found = consecutive_tests(alphas)
        want = [
            stats.ttest_rel(alphas[t], alphas[t + 1], alternative="less").pvalue for t in range(3)
        ]
        assert found.p.tolist() == pytest.approx(want)
        assert found.adjusted.tolist() == pytest.approx([min(1, 3 * p) for p in want])
        other = consecutive_tests(list(alphas), "greater")  # a sequence of tensors
        assert other.p.tolist() == pytest.approx([1 - p for p in want])

    def test_all_pairs_against_a_loop(self) -> None:
        alphas = models(1, 4, 8)
        pairs, found = all_pairs_tests(alphas)
        assert pairs.tolist() == [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]
        want = [stats.ttest_rel(alphas[i], alphas[j]).pvalue for i, j in pairs.tolist()]
        assert found.p.tolist() == pytest.approx(want)
        assert found.adjusted.tolist() == pytest.approx([min(1, 6 * p) for p in want])

    @pytest.mark.parametrize("test", [consecutive_tests, all_pairs_tests])
    def test_errors(self, test: Callable[[list[list[float]]], object]) -> None:
        with pytest.raises(ValueError, match=r"`alphas` must be \[T, M\].*got \[1, 2\]"):
            test([[1.0, 2.0]])


def slow_holm(p: list[float]) -> list[float]:
    known = sorted(v for v in p if not math.isnan(v))
    out = []
    for v in p:
        steps = [(len(known) - i) * q for i, q in enumerate(known) if q <= v]
        out.append(min(1.0, max(steps)) if steps else NAN)
    return out


def slow_bh(p: list[float]) -> list[float]:
    known = sorted(v for v in p if not math.isnan(v))
    out = []
    for v in p:
        steps = [len(known) / (i + 1) * q for i, q in enumerate(known) if q >= v]
        out.append(min(1.0, *steps) if steps else NAN)
    return out


P_VALUES = st.lists(st.one_of(st.just(NAN), st.floats(0, 1), st.sampled_from([0.01, 0.04])))


class TestMultiplicity:
    def test_by_hand(self) -> None:
        p = [0.01, 0.04, 0.03, 0.005]
        assert bonferroni(p).tolist() == pytest.approx([0.04, 0.16, 0.12, 0.02])
        assert holm(p).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
        assert benjamini_hochberg(p).tolist() == pytest.approx([0.02, 0.04, 0.04, 0.02])

    @settings(max_examples=150, deadline=None)
    @given(P_VALUES)
    def test_slow_loops_and_scipy(self, p: list[float]) -> None:
        known = [v for v in p if not math.isnan(v)]
        want = [min(1.0, v * len(known)) if v == v else NAN for v in p]
        assert bonferroni(p).tolist() == pytest.approx(want, nan_ok=True)
        assert holm(p).tolist() == pytest.approx(slow_holm(p), nan_ok=True)
        got = benjamini_hochberg(p)
        assert got.tolist() == pytest.approx(slow_bh(p), nan_ok=True)
        if known:
            scipys = stats.false_discovery_control(known, method="bh")
            assert got[~got.isnan()].tolist() == pytest.approx(scipys.tolist())

    @pytest.mark.parametrize("adjust", [bonferroni, holm, benjamini_hochberg])
    def test_any_shape_is_one_family(self, adjust: Callable[[Tensor], Tensor]) -> None:
        p = models(0, 2, 3, 4) / 10
        got = adjust(p)
        assert got.shape == p.shape
        assert torch.equal(got.flatten(), adjust(p.flatten()))
        order = torch.randperm(24)
        assert torch.equal(adjust(p.flatten()[order]), got.flatten()[order])
        one = adjust(torch.tensor(0.25))
        assert one.shape == ()
        assert one == 0.25

    @pytest.mark.parametrize("adjust", [bonferroni, holm, benjamini_hochberg])
    def test_errors(self, adjust: Callable[[list[float]], Tensor]) -> None:
        with pytest.raises(ValueError, match=r"`p` must be in \[0, 1\].*got 1\.5"):
            adjust([0.5, 1.5])


class TestClassChange:
    @staticmethod
    def slow(before: Tensor, after: Tensor) -> list[float]:
        x, y = before - before.mean(1, keepdim=True), after - after.mean(1, keepdim=True)
        return [
            float(stats.ttest_ind(y[:, k], x[:, k], equal_var=False).pvalue)
            for k in range(before.shape[1])
        ]

    def test_against_a_loop(self) -> None:
        before, after = models(0, 9, 6) / 4 + 0.5, models(1, 7, 6) / 4 + 0.4
        after[:, 2] -= 0.3
        after[:, 4] += 0.2
        found = class_change_test(before, after)
        want = self.slow(before, after)
        assert found.p.tolist() == pytest.approx(want)
        assert found.adjusted.tolist() == pytest.approx(
            stats.false_discovery_control(want, method="bh").tolist()
        )
        change = (after.mean(0) - after.mean()) - (before.mean(0) - before.mean())
        assert found.difference.tolist() == pytest.approx(change.tolist())
        assert found.lost().tolist() == [2]
        assert found.gained().tolist() == [4]
        assert found.lost(0.0).tolist() == found.gained(0.0).tolist() == []

    def test_one_accuracy_for_all_is_the_published_code(self) -> None:
        """It takes the mean accuracy off every model, so that the models' accuracies add to the spread."""
        before, after = models(2, 9, 6), models(3, 9, 6)
        found = class_change_test(
            before, after, accuracy_before=before.mean().item(), accuracy_after=after.mean()
        )
        want = stats.ttest_ind(after - after.mean(), before - before.mean(), equal_var=False)
        assert found.p.tolist() == pytest.approx(want.pvalue.tolist())
        own = class_change_test(before, after)
        assert found.difference.tolist() == pytest.approx(own.difference.tolist())
        assert not torch.allclose(found.p, own.p)

    def test_given_accuracies(self) -> None:
        before, after = models(4, 5, 3), models(5, 4, 3)
        found = class_change_test(
            before, after, accuracy_before=before.mean(1), accuracy_after=after.mean(1).tolist()
        )
        assert found.p.tolist() == pytest.approx(class_change_test(before, after).p.tolist())

    def test_no_spread_and_no_change(self) -> None:
        before = [[0.9, 0.6, 0.6]] * 3
        moved = class_change_test(before, [[0.9, 0.8, 0.4]] * 3)
        assert moved.p.tolist()[1:] == [0, 0]
        assert moved.p[0].isnan()
        assert moved.gained().tolist() == [1]
        assert moved.lost().tolist() == [2]
        same = class_change_test(before, before)
        assert same.p.isnan().all()
        assert same.lost().tolist() == same.gained().tolist() == []

    @pytest.mark.parametrize(("m", "m2"), [(1, 1), (1, 5), (5, 1)])
    def test_one_model_has_a_difference_and_no_p(self, m: int, m2: int) -> None:
        found = class_change_test(models(6, m, 3), models(7, m2, 3))
        assert found.p.isnan().all()
        assert found.adjusted.isnan().all()
        assert found.difference.isfinite().all()
        assert found.lost(1.0).tolist() == found.gained(1.0).tolist() == []

    def test_a_class_without_support(self) -> None:
        before, after = models(8, 5, 4), models(9, 5, 4)
        want = class_change_test(before[:, :3], after[:, :3])
        before[:, 3] = NAN
        after[:, 3] = NAN
        found = class_change_test(before, after)
        assert found.p[3].isnan()
        assert found.difference[3].isnan()
        assert torch.allclose(found.adjusted[:3], want.adjusted)  # no test, so no family member

    def test_errors(self) -> None:
        with pytest.raises(ValueError, match=r"`recall_after` must be \[M, K\].*got \[2\]"):
            class_change_test([[0.5, 0.6]], [0.5, 0.6])
        with pytest.raises(ValueError, match=r"the same classes, got \[1, 2\] and \[1, 3\]"):
            class_change_test([[0.5, 0.6]], [[0.5, 0.6, 0.7]])
        with pytest.raises(ValueError, match=r"`accuracy_before` must be one number or .*\[1\]"):
            class_change_test([[0.5, 0.6]], [[0.5, 0.6]], accuracy_before=[0.5, 0.6])


@pytest.mark.parametrize("function", [intensification_ratio, intensification_line])
def test_bad_recalls(function: Callable[..., object]) -> None:
    with pytest.raises(ValueError, match=r"one shape \[\.\.\., K\], got \[1, 2\] and \[1, 3\]"):
        function([[0.5, 0.6]], [[0.5, 0.6, 0.7]])
    with pytest.raises(ValueError, match=r"one shape \[\.\.\., K\], got \[\] and \[\]"):
        function(0.5, 0.5)
    with pytest.raises(ValueError, match=r"`recall_after` must be in \[0, 1\] .*got 91\.5"):
        function([[0.5, 0.6]], [[0.5, 91.5]])
    with pytest.raises(ValueError, match=r"`recall_before` must be in \[0, 1\] .*got -0\.1"):
        function([[0.5, -0.1]], [[0.5, 0.5]])
    with pytest.raises(
        ValueError, match=r"`accuracy_after` must be one number or .*\[1\], got \[2\]"
    ):
        function([[0.5, 0.6]], [[0.5, 0.6]], accuracy_after=[0.5, 0.6])


@pytest.mark.parametrize(
    "call",
    [
        lambda: summarise([1.0, 2.0]),
        lambda: paired_test([1.0, 2.0], [2.0, 4.0]),
        lambda: independent_test([1.0, 2.0], [2.0, 4.0]),
        lambda: class_change_test([[0.5, 0.6]], [[0.5, 0.6]]),
        lambda: benjamini_hochberg([0.5]),
    ],
)
def test_without_scipy(call: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(ImportError, match=r"scipy: pip install 'lightning-fairprune\[report\]'"):
        call()


def test_what_needs_no_distribution_needs_no_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    assert intensification_ratio([0.9, 0.7], [0.7, 0.5]) > 1
    assert bonferroni([0.5]) == holm([0.5])


# The published data: Good et al., Figure 5, CIFAR-10, ResNet-56, magnitude pruning, 30 models.

RATIOS = (2, 4, 10, 20, 50)
PUBLISHED = {  # slope, r^2 of the legend; mean and deviation of the models' alphas, label of Figure 1
    2: (0.928, 0.978, 0.9326, 0.0503, "<"),
    4: (0.953, 0.975, 0.9593, 0.0547, "<"),
    10: (1.057, 0.967, 1.0649, 0.0575, ">"),
    20: (1.239, 0.953, 1.2474, 0.0930, ">"),
    50: (1.791, 0.873, 1.8018, 0.1513, ">"),
}


@pytest.fixture(scope="module")
def published() -> tuple[Tensor, Tensor]:
    """Recalls before and after, [5, 30, 10]."""
    root = os.environ.get("FAIRPRUNE_DATA")
    if root is None or not (path := Path(root) / FILE).is_file():
        pytest.skip(
            f"set FAIRPRUNE_DATA to a folder that holds {FILE} to check the published figures"
        )
    before = torch.full((5, 30, 10), NAN, dtype=torch.float64)
    after = before.clone()
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            where = RATIOS.index(int(row["ratio"])), int(row["model"]), int(row["class_index"])
            before[where], after[where] = float(row["recall_before"]), float(row["recall_after"])
    assert not (before + after).isnan().any()
    return before, after


def test_published_alphas(published: tuple[Tensor, Tensor]) -> None:
    before, after = published
    assert before[4, 0].tolist() == GOLDEN_BEFORE
    assert after[4, 0].tolist() == GOLDEN_AFTER
    alpha = intensification_ratio(before, after)
    for t in range(5):
        for m in range(30):
            slow = slow_alpha(before[t, m].tolist(), after[t, m].tolist())
            assert alpha[t, m].item() == pytest.approx(slow, rel=1e-12)


@pytest.mark.parametrize("ratio", RATIOS)
def test_published_labels_and_lines(published: tuple[Tensor, Tensor], ratio: int) -> None:
    before, after = (values[RATIOS.index(ratio)] for values in published)
    slope, r2, mean, sd, label = PUBLISHED[ratio]
    found = summarise(intensification_ratio(before, after))
    assert (round(found.mean, 4), round(found.sd, 4), found.label) == (mean, sd, label)
    line = intensification_line(before, after)
    assert (round(line[0], 3), round(line[1], 3)) == (slope, r2)


def test_published_tests(published: tuple[Tensor, Tensor]) -> None:
    found = consecutive_tests(intensification_ratio(*published))
    assert [f"{p:.1e}" for p in found.p] == ["9.1e-03", "1.7e-11", "3.2e-15", "5.9e-23"]
    assert torch.equal(found.adjusted, 4 * found.p)


def test_published_classes(published: tuple[Tensor, Tensor]) -> None:
    """At ratio 50 bird, cat and deer pay for automobile, frog, ship and truck."""
    before, after = (values[4] for values in published)
    found = class_change_test(before, after)
    assert found.p.tolist() == pytest.approx(TestClassChange.slow(before, after), rel=1e-6)
    assert found.lost(0.001).tolist() == [2, 3, 4]
    assert found.gained(0.001).tolist() == [1, 6, 8, 9]
