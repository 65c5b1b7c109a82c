"""Posterior means of recalls: the likelihood of scipy on a fine grid, the test, and what must hold at the edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import betabinom, binom
from torch import Tensor

from lightning_fairprune import quotas
from lightning_fairprune._observe.validation import RecallWindow
from lightning_fairprune.counts import ClassCounts
from lightning_fairprune.recalls import empirical_bayes

CRITICAL = 2.7055


def slow(tp: list[int], support: list[int]) -> list[float]:
    """Searches mean and strength of the prior on grids, each ten times finer than the last."""
    hits, size = np.array(tp), np.array(support)

    def gain(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        mean, strength = 1 / (1 + np.exp(-u[:, None, None])), np.exp(v[None, :, None])
        return betabinom.logpmf(hits, size, mean * strength, (1 - mean) * strength).sum(-1)

    centre_u, centre_v, half = 0.0, 4.0, 8.0
    for _ in range(6):
        u, v = np.linspace(-half, half, 41) + centre_u, np.linspace(-half, half, 41) + centre_v
        found = gain(u, v)
        i, j = np.unravel_index(found.argmax(), found.shape)
        centre_u, centre_v, half = u[i], v[j], half / 10
    pooled = hits.sum() / size.sum()
    if 2 * (found.max() - binom.logpmf(hits, size, pooled).sum()) <= CRITICAL:
        return [pooled] * len(tp)
    mean, strength = 1 / (1 + math.exp(-centre_u)), math.exp(centre_v)
    return [(x + mean * strength) / (n + strength) for x, n in zip(tp, support, strict=True)]


CASES = {
    "noise": ([29, 30, 28, 30], [30] * 4),
    "noise at a half": ([14, 17, 15, 12], [30] * 4),
    "one far below": ([30, 10, 29, 28], [30] * 4),
    "spread": ([20, 28, 12, 25, 30, 3], [30] * 6),
    "two classes": ([90, 60], [100, 100]),
    "unequal supports": ([2, 95, 30, 350], [8, 100, 60, 500]),
    "few and far": ([1, 0, 3, 2, 0], [3, 2, 3, 2, 4]),
    "many": ([440, 300, 480, 390, 420], [500] * 5),
    "a little beyond noise": ([30, 30, 29, 30, 23, 30], [30] * 6),
}


@pytest.mark.parametrize(("tp", "support"), CASES.values(), ids=CASES)
def test_is_the_posterior_mean_under_the_most_likely_prior(
    tp: list[int], support: list[int]
) -> None:
    found = empirical_bayes(torch.tensor(tp), torch.tensor(support))
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx(slow(tp, support), abs=1e-4)


def test_noise_makes_quotas_proportional_and_certainty_makes_them_those_of_the_recalls() -> None:
    sizes, support = [100, 200, 300], torch.tensor([30, 30, 30])
    noise = empirical_bayes(torch.tensor([30, 28, 29]), support)
    assert noise.tolist() == [87 / 90] * 3
    assert torch.equal(quotas.drop(sizes, noise, 180), quotas.proportional(sizes, 180))
    tp, support = torch.tensor([9_900, 5_000, 8_000]), torch.tensor([10_000] * 3)
    certain = empirical_bayes(tp, support)
    torch.testing.assert_close(certain, tp / support.double(), atol=1e-3, rtol=0)
    gap = quotas.drop(sizes, certain, 180) - quotas.drop(sizes, tp / support.double(), 180)
    assert gap.abs().max() <= 1


@pytest.mark.parametrize("recall", [0.7, 0.97, 0.997])
def test_equal_recalls_stay_equal_in_nineteen_of_twenty_cases(recall: float) -> None:
    torch.manual_seed(0)
    support = torch.full((2_000, 10), 30.0)
    tp = torch.binomial(support, torch.full_like(support, recall))
    found = empirical_bayes(tp, support)
    alarms = (found.amax(-1) > found.amin(-1)).double().mean()
    assert alarms < 0.05


@pytest.mark.parametrize(
    ("tp", "support", "expected"),
    [
        ([30, 30, 30], [30, 30, 30], [1.0, 1.0, 1.0]),
        ([0, 0], [30, 5], [0.0, 0.0]),
        ([7], [10], [0.7]),
        ([7, 0], [10, 0], [0.7, 0.7]),  # the prior mean
        ([0, 0], [0, 0], [math.nan, math.nan]),
        ([], [], []),
        ([50, 0], [50, 50], [1.0, 0.0]),
    ],
)
def test_edges(tp: list[int], support: list[int], expected: list[float]) -> None:
    found = empirical_bayes(torch.tensor(tp), torch.tensor(support))
    assert found.tolist() == pytest.approx(expected, abs=1e-4, nan_ok=True)


def test_few_samples_are_pulled_further() -> None:
    tp, support = [5, 50, 500, 27, 30], [10, 100, 1000, 30, 30]
    found = empirical_bayes(torch.tensor(tp), torch.tensor(support))
    few, some, many = found[:3].tolist()
    assert few > some > many > 0.5


def test_a_class_without_support_changes_nothing_and_gets_the_prior_mean() -> None:
    tp, support = torch.tensor([30, 10, 29]), torch.tensor([30, 30, 30])
    alone = empirical_bayes(tp, support)
    found = empirical_bayes(torch.cat([tp, tp.new_zeros(1)]), torch.cat([support, tp.new_zeros(1)]))
    assert torch.equal(found[:3], alone)
    assert alone.min() < found[3] < alone.max()


def test_a_batch_is_its_rows_in_any_order_of_classes() -> None:
    torch.manual_seed(1)
    support = torch.randint(0, 60, (5, 2, 7))
    rate = torch.rand(5, 2, 1) ** torch.rand(5, 2, 7)
    tp = torch.binomial(support.float(), rate)
    found = empirical_bayes(tp, support)
    order = torch.randperm(7)
    rows = torch.stack(
        [
            empirical_bayes(x[order], n[order])
            for x, n in zip(tp.flatten(0, 1), support.flatten(0, 1), strict=True)
        ]
    )
    torch.testing.assert_close(found.flatten(0, 1)[:, order], rows, rtol=1e-6, atol=1e-9)
    assert bool(((found >= 0) & (found <= 1)).all())


def test_as_many_classes_as_imagenet() -> None:
    torch.manual_seed(2)
    truth = torch.distributions.Beta(6.0, 2.0).sample((21_841,)).double()
    support = torch.full_like(truth, 50)
    found = empirical_bayes(torch.binomial(support, truth), support)
    raw = torch.binomial(support, truth) / support
    assert (found - truth).square().mean() < 0.95 * (raw - truth).square().mean()


def test_huge_supports() -> None:  # positions of a segmentation
    support = torch.tensor([10**9, 10**6, 10**8])
    tp = torch.tensor([9 * 10**8, 5 * 10**5, 10**8])
    torch.testing.assert_close(empirical_bayes(tp, support), tp / support.double(), rtol=1e-4, atol=0)  # fmt: skip


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"must both be \[..., K\], got \[2\] and \[3\]"):
        empirical_bayes(torch.ones(2), torch.ones(3))
    with pytest.raises(ValueError, match=r"must both be \[..., K\]"):
        empirical_bayes(torch.tensor(1), torch.tensor(2))


# -------------------------------------------------------------------------------- counts and window


def counts(*pairs: tuple[int, int]) -> ClassCounts:
    tp, support = torch.tensor(pairs).T
    return ClassCounts(tp, support)


def nan_equal(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, equal_nan=True, rtol=0, atol=0)


def test_counts_leave_a_class_without_support_unknown() -> None:
    given = counts((30, 30), (10, 30), (0, 0))
    fitted = empirical_bayes(given.tp, given.support)
    nan_equal(given.shrunk_recall("auto"), torch.where(given.support > 0, fitted, math.nan))


def test_three_validations_of_the_same_samples_say_no_more_than_one() -> None:
    one = counts((30, 30), (27, 30), (29, 30), (0, 0))
    window = RecallWindow(3, "auto")
    for _ in range(3):
        window.add(one)
    nan_equal(window.recall(), one.shrunk_recall("auto"))
    assert window.recall()[0] == window.recall()[1]
    # As if they were ninety samples the same recalls would differ.
    pooled = ClassCounts.pooled([one] * 3).shrunk_recall("auto")
    assert pooled[0] > pooled[1]


def test_the_window_takes_the_mean_recall_and_groups_that_came_later() -> None:
    window = RecallWindow(2, "auto")
    for found in (counts((1, 30)), counts((30, 30), (5, 20)), counts((15, 30), (6, 20), (8, 9))):
        window.add(found)
    expected = empirical_bayes(torch.tensor([22.5, 5.5, 8]), torch.tensor([30, 20, 9]))
    torch.testing.assert_close(window.recall(), expected)
    again = RecallWindow(2, "auto")
    again.load_state_dict(window.state_dict())
    assert torch.equal(again.recall(), window.recall())
