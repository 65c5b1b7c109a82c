"""What holds for selections whatever the labels, scores and quotas."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_fairprune.selection import Keep, Selection, select

keeps = st.sampled_from(get_args(Keep))
by_score = st.sampled_from(["hard", "easy"])


@dataclass
class Problem:
    target: Tensor
    score: Tensor
    quota: Tensor
    seed: int

    def select(self, keep: Any, **changed: Any) -> Selection:
        with_score = {} if keep == "random" else {"score": changed.get("score", self.score)}
        return select(
            changed.get("target", self.target),
            changed.get("quota", self.quota),
            keep=keep,
            seed=self.seed,
            **with_score,
        )


@st.composite
def problems(draw: st.DrawFn, *, distinct: bool = False) -> Problem:
    k = draw(st.integers(1, 5))
    target = draw(st.lists(st.integers(-1, k - 1), max_size=40))
    n = len(target)
    score: list[float]
    if distinct:
        score = [float(i) for i in draw(st.permutations(range(n)))]
    else:
        one = st.one_of(st.integers(-2, 2).map(float), st.floats(-(2.0**100), 2.0**100, width=32))
        score = draw(st.lists(one, min_size=n, max_size=n))
    quota = [draw(st.integers(0, target.count(c))) for c in range(k)]
    return Problem(
        torch.tensor(target, dtype=torch.int64),
        torch.tensor(score, dtype=torch.float32),
        torch.tensor(quota, dtype=torch.int64),
        draw(st.integers(0, 2**40)),
    )


@given(problems(distinct=True), by_score, st.randoms(use_true_random=False))
def test_the_order_of_the_samples_does_not_matter(p: Problem, keep: Any, random: Any) -> None:
    order = torch.tensor(random.sample(range(len(p.target)), len(p.target)), dtype=torch.int64)
    kept = p.select(keep, target=p.target[order], score=p.score[order])
    assert torch.equal(order[kept.indices].sort().values, p.select(keep).indices)


@given(problems(), keeps, st.permutations(range(5)))
def test_the_names_of_the_classes_do_not_matter(p: Problem, keep: Any, order: list[int]) -> None:
    name = torch.tensor([k for k in order if k < len(p.quota)])
    target = torch.where(p.target < 0, p.target, name[p.target.clamp(min=0)])
    quota = torch.zeros_like(p.quota).index_copy(0, name, p.quota)
    assert torch.equal(p.select(keep, target=target, quota=quota).indices, p.select(keep).indices)


@given(problems(distinct=True))
def test_hard_and_easy_share_every_class(p: Problem) -> None:
    sizes = p.select("hard").sizes
    hard, easy = p.select("hard"), p.select("easy", quota=sizes - p.quota)
    both = hard.indices.tolist() + easy.indices.tolist()
    assert sorted(both) == (p.target >= 0).nonzero().flatten().tolist()


@given(problems(), by_score, st.sampled_from([0.25, 1.0, 8.0]))
def test_only_the_order_of_the_scores_counts(p: Problem, keep: Any, factor: float) -> None:
    other = {"hard": "easy", "easy": "hard"}[keep]
    kept = p.select(keep).indices
    # In double precision, where no score of single precision is lost.
    assert torch.equal(p.select(keep, score=p.score.double() * factor).indices, kept)
    assert torch.equal(p.select(other, score=-p.score).indices, kept)


@given(problems(), st.sampled_from(["random", "hard", "easy"]), st.integers(0, 39))
def test_who_was_not_kept_might_as_well_be_excluded(p: Problem, keep: Any, which: int) -> None:
    kept = p.select(keep)
    target = p.target.clone()
    out = (~kept.mask()).nonzero().flatten()
    target[out[: which + 1]] = -1
    assert torch.equal(p.select(keep, target=target).indices, kept.indices)


@given(problems(), keeps)
def test_a_number_is_the_quota_of_a_single_class(p: Problem, keep: Any) -> None:
    budget = int(p.quota.sum())
    one_class = p.target.clamp(max=0)
    whole = p.select(keep, quota=budget).indices
    assert torch.equal(
        whole, p.select(keep, target=one_class, quota=torch.tensor([budget])).indices
    )
    assert len(whole) == budget
