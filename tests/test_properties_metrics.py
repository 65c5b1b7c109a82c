"""What holds for counts, recalls and metrics whatever is predicted."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_fairprune import recalls
from lightning_fairprune.counts import ClassCounts, count

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


def same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a.double(), b.double(), rtol=1e-9, atol=1e-12, equal_nan=True)


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
