"""The cut-off of the hardest samples, and a random part of each class to choose from."""

from __future__ import annotations

from typing import Any

import oracles_quotas as oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_properties_selection import Problem, problems
from torch import Tensor

from lightning_fairprune import quotas, select
from lightning_fairprune.selection.decision import Decision

by_score = st.sampled_from(["hard", "stratified"])
fractions = st.one_of(st.sampled_from([0.0, 0.1, 0.5, 0.999]), st.floats(0, 1, exclude_max=True))
parts = st.one_of(st.sampled_from([1.0, 0.5, 1e-9]), st.floats(0.01, 1))


def chosen(p: Problem, keep: Any, quota: Tensor | int | None = None, **limits: float) -> Any:
    wanted = p.quota if quota is None else quota
    return select(p.target, wanted, score=p.score, keep=keep, seed=p.seed, **limits)


def cut(p: Problem, cutoff: float) -> Tensor:
    """The labels, -1 for the hardest of each class beyond what its quota needs."""
    target = p.target.tolist()
    sizes = [target.count(k) for k in range(len(p.quota))]
    quota = p.quota.tolist()
    count = [min(round(cutoff * n), n - q) for n, q in zip(sizes, quota, strict=True)]
    out = oracle.by_score(target, p.score.tolist(), count, True)
    return p.target.index_fill(0, torch.tensor(out, dtype=torch.int64), -1)


def test_a_window_by_hand() -> None:
    score = torch.tensor([5.0, 1.0, 4.0, 3.0, 2.0])
    target = torch.zeros(5, dtype=torch.int64)

    def hard(quota: int, cutoff: float) -> list[float]:
        kept = select(target, [quota], score=score, keep="hard", cutoff=cutoff)
        return sorted(score[kept.indices].tolist())

    assert hard(2, 0.0) == [4, 5]
    assert hard(2, 0.2) == [3, 4]
    assert hard(2, 0.4) == [2, 3]
    # The cut-off gives way: the easiest of the samples that were cut come back first.
    assert hard(4, 0.4) == [1, 2, 3, 4]
    assert hard(5, 0.4) == [1, 2, 3, 4, 5]
    assert hard(1, 0.99) == [1]
    assert hard(1, 0.29) == hard(1, 0.2)  # 1.45 samples are rounded to one


@given(problems(), by_score, fractions)
def test_a_cutoff_is_a_selection_without_the_hardest(p: Problem, keep: Any, cutoff: float) -> None:
    kept = chosen(p, keep, cutoff=cutoff)
    without = select(cut(p, cutoff), p.quota, score=p.score, keep=keep, seed=p.seed)
    assert torch.equal(kept.indices, without.indices)
    assert torch.equal(kept.quota, p.quota)


@given(problems(), st.sampled_from(["hard", "easy", "stratified"]), fractions, parts)
def test_a_pool_is_a_selection_from_random_samples(
    p: Problem, keep: Any, cutoff: float, pool: float
) -> None:
    cutoff = 0.0 if keep == "easy" else cutoff
    kept = chosen(p, keep, cutoff=cutoff, pool=pool)
    rest = cut(p, cutoff)
    sizes = torch.tensor([int((rest == k).sum()) for k in range(len(p.quota))])
    size = (sizes.double() * pool).round().long().maximum(p.quota)
    drawn = select(rest, size, seed=p.seed)
    inside = torch.where(drawn.mask(), rest, -1)
    expected = select(inside, p.quota, score=p.score, keep=keep, seed=p.seed)
    assert torch.equal(kept.indices, expected.indices)


@given(problems(), by_score, fractions, parts, st.floats(0, 1))
def test_budgets_are_exact_and_selections_nest(
    p: Problem, keep: Any, cutoff: float, pool: float, share: float
) -> None:
    limits = {"cutoff": cutoff, "pool": pool}
    more = chosen(p, keep, **limits)
    less = chosen(p, keep, (p.quota * share).long(), **limits)
    assert len(more) == int(p.quota.sum())
    assert len(less) == int((p.quota * share).long().sum())
    assert set(less.indices.tolist()) <= set(more.indices.tolist())
    budget = len(more)
    one = chosen(p, keep, budget, **limits)
    assert len(one) == budget
    assert set(chosen(p, keep, budget // 2, **limits).indices.tolist()) <= set(one.indices.tolist())


def test_the_chance_of_a_sample_follows_its_rank() -> None:
    """Of n samples s are drawn, and the q hardest of those kept: the surrogate loss of OrderDP."""
    hypergeom = pytest.importorskip("scipy.stats").hypergeom
    n, s, q = 12, 8, 5
    score = torch.arange(n).flip(0)  # the sample of index j has j harder ones
    times = torch.zeros(n, dtype=torch.float64)
    for seed in range(4000):
        kept = select(torch.zeros(n).long(), [q], score=score, keep="hard", pool=s / n, seed=seed)
        times[kept.indices] += 1
    expected = [s / n * hypergeom(n - 1, j, s - 1).cdf(q - 1) for j in range(n)]
    assert sum(expected) == pytest.approx(q)
    # Standard errors are at most .008; 4.5 of them.
    torch.testing.assert_close(times / 4000, torch.tensor(expected).double(), atol=0.036, rtol=0)


def test_the_record_says_what_was_left_out() -> None:
    target, score = torch.zeros(9, dtype=torch.int64), torch.rand(9)
    kept = select(target, [3], score=score, keep="hard", cutoff=0.1, pool=0.5)
    assert kept.keep == "hard, cutoff 0.1, pool 0.5"
    assert select(target, [3], score=score, keep="hard").keep == "hard"


@pytest.mark.parametrize(
    ("keep", "limits", "message"),
    [
        ("hard", {"cutoff": 1.0}, r"`cutoff` must be in \[0, 1\)"),
        ("hard", {"cutoff": float("nan")}, r"`cutoff` must be in \[0, 1\)"),
        ("hard", {"pool": 0.0}, r"`pool` must be in \(0, 1\]"),
        ("easy", {"cutoff": 0.1}, "`cutoff` has no effect with keep='easy'"),
        ("random", {"cutoff": 0.1}, "`cutoff` has no effect with keep='random'"),
        ("random", {"pool": 0.5}, "`pool` has no effect with keep='random'"),
    ],
)
def test_limits_without_effect_are_refused(keep: Any, limits: Any, message: str) -> None:
    score = None if keep == "random" else torch.rand(4)
    with pytest.raises(ValueError, match=message):
        select(torch.zeros(4, dtype=torch.int64), [2], score=score, keep=keep, **limits)


def test_every_draw_has_its_own_pool_and_a_resumed_one_the_same() -> None:
    target, score = torch.arange(60) % 3, torch.rand(60)

    def begin() -> Decision:
        return Decision(0.3, quotas.balanced, "hard", seed=4, cutoff=0.1, pool=0.6)

    whole = begin()
    whole.learn(target, score, 3)
    whole.estimate(0)
    draws = [whole.draw().indices for _ in range(3)]
    assert len({tuple(indices.tolist()) for indices in draws}) == 3
    resumed = begin()
    resumed.load_state_dict(whole.state_dict() | {"draws": 2})
    assert torch.equal(resumed.draw().indices, draws[2])
