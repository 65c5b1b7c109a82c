"""What holds for counts, recalls and metrics whatever is predicted."""

from __future__ import annotations

import itertools
import math
from typing import Any

import oracles_metrics as slow
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_fairprune import recalls
from lightning_fairprune.counts import ClassCounts, Tally, count

cases = st.sampled_from(sorted(slow.CASES))
Samples = tuple[Tensor, Tensor]
K = 4


@st.composite
def samples(draw: st.DrawFn, *, min_size: int = 0) -> Samples:
    pairs = draw(
        st.lists(
            st.tuples(st.integers(0, K - 1), st.integers(0, K - 1)), min_size=min_size, max_size=40
        )
    )
    found = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
    return found[:, 0], found[:, 1]


def parts(found: Samples, cuts: list[int]) -> list[Samples]:
    ends = sorted(min(cut, len(found[0])) for cut in cuts)
    bounds = [0, *ends, len(found[0])]
    return [(found[0][a:b], found[1][a:b]) for a, b in itertools.pairwise(bounds)]


def evaluated(name: str, batches: list[Samples]) -> Tensor:
    metric = slow.CASES[name].make(K).set_dtype(torch.float64)
    for batch in batches:
        metric.update(*batch)
    value: Tensor = metric.compute()
    return value


def same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a.double(), b.double(), rtol=1e-9, atol=1e-12, equal_nan=True)


@given(
    cases,
    samples(min_size=1),
    st.lists(st.integers(0, 40), max_size=4),
    st.randoms(use_true_random=False),
)
def test_batches_and_their_order_do_not_matter(
    name: str, found: Samples, cuts: list[int], random: Any
) -> None:
    whole = evaluated(name, [found])
    batches = parts(found, cuts)
    random.shuffle(batches)
    torch.testing.assert_close(evaluated(name, batches), whole, rtol=0, atol=0, equal_nan=True)
    case = slow.CASES[name]
    same(whole, case.expected(slow.count(*found, K)))


@given(samples(), samples(), samples())
def test_counts_of_parts_add_up(a: Samples, b: Samples, c: Samples) -> None:
    each = [ClassCounts(*count(*part, K)) for part in (a, b, c)]
    whole = ClassCounts(*count(*(torch.cat(column) for column in zip(a, b, c, strict=True)), K))
    for pooled in (
        ClassCounts.pooled(each),
        ClassCounts.pooled(each[::-1]),
        ClassCounts.pooled([ClassCounts.pooled(each[:2]), each[2]]),
    ):
        assert torch.equal(pooled.tp, whole.tp)
        assert torch.equal(pooled.support, whole.support)
    by_hand = slow.count(*(torch.cat(column) for column in zip(a, b, c, strict=True)), K)
    assert (whole.tp.tolist(), whole.support.tolist()) == (by_hand.tp, by_hand.support)


@given(samples(min_size=1), st.lists(st.integers(0, 40), max_size=3), st.integers(1, 3))
def test_tallies_of_ranks_add_up(found: Samples, cuts: list[int], ranks: int) -> None:
    pred, target = found
    logits = torch.nn.functional.one_hot(pred, K).float()
    tallies = []
    for rank in range(ranks):
        tally = Tally()
        for z, y in parts((logits[rank::ranks], target[rank::ranks]), cuts):
            tally.update(z, y)
        tallies.append(tally.compute())
    whole = ClassCounts(*count(pred, target, K))
    pooled = ClassCounts.pooled([tally.padded(K) for tally in tallies])
    assert torch.equal(pooled.tp, whole.tp)
    assert torch.equal(pooled.support, whole.support)


@given(samples(min_size=1), st.floats(0, 1000))
def test_shrunk_recalls_lie_between_recall_and_mean(found: Samples, pseudo: float) -> None:
    counts = ClassCounts(*count(*found, K))
    shrunk = counts.shrunk_recall(pseudo)
    seen = counts.support > 0
    low, high = counts.recall.clamp(max=counts.mean), counts.recall.clamp(min=counts.mean)
    assert bool((shrunk >= low - 1e-12)[seen].all())
    assert bool((shrunk <= high + 1e-12)[seen].all())


# --- recalls --------------------------------------------------------------------------------------

rates = st.lists(
    st.one_of(st.sampled_from([0.0, 0.5, 1.0, math.nan]), st.floats(0, 1)), min_size=1, max_size=8
).map(lambda found: torch.tensor(found, dtype=torch.float64))
seen_rates = rates.filter(lambda found: not bool(found.isnan().all()))
SLACK = 1e-12


@given(seen_rates, st.integers(1, 8), st.floats(0.01, 1))
def test_bounds(recall: Tensor, k: int, level: float) -> None:
    worst, gap, std = recalls.worst(recall), recalls.gap(recall), recalls.std(recall)
    mean, best = recall.nanmean(), recall[~recall.isnan()].max()
    assert 0 <= worst <= 1
    same(worst + gap, best)
    assert -SLACK <= std <= gap / 2 + SLACK
    k = min(k, len(recall))
    assert worst - SLACK <= recalls.worst_k(recall, k) <= mean + SLACK
    assert worst - SLACK <= recalls.cvar(recall, level) <= mean + SLACK
    seen = int((~recall.isnan()).sum())
    same(recalls.worst_k(recall, 1), worst)
    same(recalls.worst_k(recall, len(recall)), mean)
    same(recalls.cvar(recall, 1.0), mean)
    same(recalls.cvar(recall, 1 / seen), worst)
    assert recalls.worst_k(recall, max(k - 1, 1)) <= recalls.worst_k(recall, k) + SLACK
    assert recalls.cvar(recall, level / 2) <= recalls.cvar(recall, level) + SLACK
    assert int(recalls.zero_recall(recall)) == (recall == 0).sum()


NUMBERS = {
    "worst": recalls.worst,
    "worst_k": lambda r: recalls.worst_k(r, min(2, r.shape[-1])),
    "cvar": lambda r: recalls.cvar(r, 0.3),
    "gap": recalls.gap,
    "std": recalls.std,
    "zero_recall": recalls.zero_recall,
}
CLASSWISE = {"balance": recalls.balance, "normalised_balance": recalls.normalised_balance}


@given(rates, st.randoms(use_true_random=False))
def test_names_of_classes_and_unseen_ones_do_not_matter(recall: Tensor, random: Any) -> None:
    order = torch.tensor(random.sample(range(len(recall)), len(recall)))
    unseen = torch.cat([recall, torch.tensor([math.nan], dtype=torch.float64)])
    for function in NUMBERS.values():
        same(function(recall[order]), function(recall))
        same(function(unseen), function(recall))
    for function in CLASSWISE.values():
        same(function(recall[order]), function(recall)[order])
        same(function(unseen)[:-1], function(recall))


@given(st.lists(st.lists(st.floats(0, 1), min_size=5, max_size=5), min_size=1, max_size=4))
def test_a_batch_is_one_model_after_the_other(models: list[list[float]]) -> None:
    stacked = torch.tensor(models, dtype=torch.float64)
    for function in (*NUMBERS.values(), *CLASSWISE.values()):
        same(function(stacked), torch.stack([function(row) for row in stacked]))


@given(seen_rates)
def test_nothing_changed_next_to_itself(recall: Tensor) -> None:
    seen = ~recall.isnan()
    same(recalls.change(recall, recall)[seen], torch.zeros(int(seen.sum())))
    same(
        recalls.retention(recall, recall)[seen & (recall > 0)], torch.ones(int((recall > 0).sum()))
    )
    same(recalls.adjusted_change(recall, recall)[seen], torch.zeros(int(seen.sum())))
    assert abs(float(recalls.disparity(recall, recall))) <= SLACK
    alpha = recalls.intensification(recall, recall)
    assert math.isnan(alpha) or abs(float(alpha) - 1) < 1e-9
