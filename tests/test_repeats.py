"""Quotas beyond the size of a class, and selections that draw samples several times."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import oracles_quotas as oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_quotas import RULES
from torch import Tensor

import lightning_fairprune as lfp
from lightning_fairprune import quotas, select
from lightning_fairprune.selection import Keep, Selection

KEEPS = get_args(Keep)

# ------------------------------------------------------------------------------------- the quotas


@pytest.mark.parametrize(
    ("rule", "repeat", "budget", "expected"),
    [
        (quotas.balanced, 1, 51, [21, 20, 10]),
        (quotas.balanced, 2, 51, [17, 17, 17]),
        (quotas.balanced, 2, 70, [25, 25, 20]),
        (
            quotas.proportional,
            2,
            220,
            [120, 80, 20],
        ),  # all of it twice, more than there are samples
        # A class counts as large as it can be drawn, up to the largest: 60, 60 and 30.
        (quotas.proportional, 3, 11, [5, 4, 2]),
        (quotas.proportional, 6, 12, [4, 4, 4]),
        (lambda *a, **k: quotas.drop(a[0], [0.9, 0.7, 0.4], *a[1:], **k), 2, 36, [6, 18, 12]),
        (lambda *a, **k: quotas.drop(a[0], [0.9, 0.7, 0.4], *a[1:], **k), 6, 30, [3, 9, 18]),
        (lambda *a, **k: quotas.balanced(*a, cap=15, **k), 2, 45, [15, 15, 15]),
        (lambda *a, **k: quotas.proportional(*a, floor=15, **k), 2, 55, [20, 20, 15]),
    ],
)
def test_quotas_by_hand(rule: Any, repeat: int, budget: int, expected: list[int]) -> None:
    assert rule([60, 40, 10], budget, repeat=repeat).tolist() == expected


@st.composite
def problems(draw: st.DrawFn) -> dict[str, Any]:
    k, repeat = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    each = lambda one: draw(st.lists(one, min_size=k, max_size=k))  # noqa: E731
    sizes, cap = each(st.integers(0, 12)), each(st.sampled_from([0, 9, 10**6]))
    most = [min(repeat * n, c) for n, c in zip(sizes, cap, strict=True)]
    floor = [min(f, m) for f, m in zip(each(st.sampled_from([0, 0, 20])), most, strict=True)]
    budgets = sorted(draw(st.integers(sum(floor), sum(most))) for _ in range(2))
    recall = each(st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0]))
    limits = {"floor": floor, "cap": cap, "repeat": repeat}
    return {"sizes": sizes, "recall": recall, "most": most, "budgets": budgets, "limits": limits}


@given(problems(), st.sampled_from(sorted(RULES)))
def test_quotas_are_exact_capped_and_nested(p: dict[str, Any], name: str) -> None:
    low, high = (RULES[name](p["sizes"], p["recall"], b, **p["limits"]) for b in p["budgets"])
    for quota, budget in zip((low, high), p["budgets"], strict=True):
        assert int(quota.sum()) == budget
        assert bool((quota <= torch.tensor(p["most"])).all())
        assert bool((quota >= torch.tensor(p["limits"]["floor"])).all())
    assert bool((low <= high).all())


@given(problems())
def test_quotas_are_those_of_the_list_of_seats(p: dict[str, Any]) -> None:
    sizes, budget, limits = p["sizes"], p["budgets"][0], p["limits"]
    counted = [min(limits["repeat"] * n, max(sizes)) for n in sizes]
    for rule, weights in ((quotas.balanced, [1.0] * len(sizes)), (quotas.proportional, counted)):
        seats = oracle.seat_list(weights, p["most"], budget, limits["floor"])
        assert rule(sizes, budget, **limits).tolist() == seats


@pytest.mark.parametrize(
    ("repeat", "error"), [(0, ValueError), (2.0, TypeError), (2**21, ValueError)]
)
def test_what_repeat_cannot_be(repeat: Any, error: Any) -> None:
    with pytest.raises(error, match="`repeat` must be"):
        quotas.drop([5, 5], [0.5, 0.5], 5, repeat=repeat)
    with pytest.raises(error, match="`repeat` must be"):
        select(torch.tensor([0, 1]), [1, 1], repeat=repeat)
    with pytest.raises(error, match="`repeat` must be"):
        lfp.DataPruning(0.5, 1, repeat=repeat if error is TypeError else 0)


# ---------------------------------------------------------------------------------- the selection


@st.composite
def labelled(draw: st.DrawFn) -> dict[str, Any]:
    k, repeat = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    target = draw(st.lists(st.integers(-1, k - 1), max_size=25))
    n = len(target)
    score = draw(st.lists(st.integers(-3, 3), min_size=n, max_size=n))
    quota = [draw(st.integers(0, repeat * target.count(c))) for c in range(k)]
    keep = draw(st.sampled_from(KEEPS))
    with_score = {} if keep == "random" else {"score": torch.tensor(score, dtype=torch.float64)}
    options = {"keep": keep, "seed": draw(st.integers(0, 99)), **with_score}
    return {
        "target": torch.tensor(target).long(),
        "quota": quota,
        "repeat": repeat,
        "options": options,
    }


def in_order(target: Tensor, size: int, k: int, options: dict[str, Any]) -> list[int]:
    """The samples of a class in the order that growing quotas keep them."""
    order: list[int] = []
    for n in range(1, size + 1):
        quota = [n if c == k else 0 for c in range(int(target.max()) + 1)]
        order += set(select(target, quota, **options).indices.tolist()) - set(order)
    return order


@given(labelled())
def test_a_selection_goes_round_its_classes(p: dict[str, Any]) -> None:
    chosen = select(p["target"], p["quota"], repeat=p["repeat"], **p["options"])
    expected: Counter[int] = Counter()
    for k, n in enumerate(p["quota"]):
        size = int((p["target"] == k).sum())
        order = in_order(p["target"], size, k, p["options"])
        expected.update(order[j % size] for j in range(n))
    assert chosen.indices.tolist() == sorted(expected.elements())
    assert chosen.quota.tolist() == p["quota"]
    assert chosen.distinct == len(expected) == int(chosen.mask().sum())


@given(labelled(), st.data())
def test_a_smaller_quota_draws_no_sample_more_often(p: dict[str, Any], data: st.DataObject) -> None:
    fewer = [data.draw(st.integers(0, n)) for n in p["quota"]]
    low, high = (
        select(p["target"], q, repeat=p["repeat"], **p["options"]).indices
        for q in (fewer, p["quota"])
    )
    n = len(p["target"])
    assert bool((low.bincount(minlength=n) <= high.bincount(minlength=n)).all())


@given(labelled())
def test_without_need_nothing_is_repeated(p: dict[str, Any]) -> None:
    sizes = select(p["target"], [0] * len(p["quota"]), **p["options"]).sizes
    quota = torch.tensor(p["quota"]).minimum(sizes)
    once = select(p["target"], quota, **p["options"])
    often = select(p["target"], quota, repeat=9, **p["options"])
    assert torch.equal(once.indices, often.indices)


@pytest.mark.parametrize("keep", KEEPS)
def test_a_number_goes_round_all_samples(keep: Keep) -> None:
    target, score = torch.tensor([0, 1, -1, 1, 0]), None if keep == "random" else torch.arange(5.0)
    chosen = select(target, 10, score=score, keep=keep, repeat=3)
    once = select(target, 2, score=score, keep=keep).indices.tolist()
    assert Counter(chosen.indices.tolist()) == Counter([0, 1, 3, 4] * 2 + once)
    with pytest.raises(
        ValueError, match="the 4 samples that can be selected up to 3 times each, got 13"
    ):
        select(target, 13, score=score, keep=keep, repeat=3)


def example() -> Selection:
    return select(torch.tensor([0] * 5 + [1] * 2 + [-1]), [3, 5], seed=2, repeat=3)


def test_a_selection_says_what_is_repeated() -> None:
    kept = example()
    assert (len(kept), kept.distinct, kept.density) == (8, 5, 1.0)
    assert kept.class_distinct.tolist() == [3, 2]
    assert kept.class_density.tolist() == [0.6, 2.5]
    assert repr(kept) == (
        "Selection(8 of 8, 5 distinct, density 1.000, keep='random', seed=2, repeat=3)"
    )
    assert kept.summary().splitlines() == [
        "class  size  kept  density  distinct",
        "0         5     3    0.600         3",
        "1         2     5    2.500         2",
        "all       7     8    1.143         5",
    ]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"repeat": 1}, "`indices` must be sorted, each sample once"),
        ({"repeat": 2}, "`indices` must be sorted, each sample at most 2 times"),
        ({"indices": torch.tensor([6, 5, 5, 5, 6, 0, 1, 2])}, "`indices` must be sorted"),
        (
            {"indices": torch.tensor([0, 0, 1, 5, 5, 5, 6, 6])},
            "repeat no sample of a class before .* 5",
        ),
        ({"quota": torch.tensor([1, 7])}, r"`quota` must be in \[0, 3 sizes\]"),
    ],
)
def test_a_selection_that_contradicts_itself(change: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        dataclasses.replace(example(), **change)


def test_files(tmp_path: Path) -> None:
    kept, target = example(), torch.tensor([0] * 5 + [1] * 2 + [-1])
    kept.save(tmp_path / "kept.safetensors")
    found = [Selection.load(tmp_path / "kept.safetensors")]
    pq = pytest.importorskip("pyarrow.parquet")
    kept.to_parquet(tmp_path / "kept.parquet")
    found.append(Selection.from_parquet(tmp_path / "kept.parquet", target))
    for one in found:
        assert torch.equal(one.indices, kept.indices)
        assert torch.equal(one.quota, kept.quota)
        assert (one.repeat, one.distinct, one.keep, one.seed) == (3, 5, "random", 2)
    pa = pytest.importorskip("pyarrow")
    pq.write_table(pa.table({"row": kept.indices.numpy()}), tmp_path / "foreign.parquet")
    with pytest.raises(ValueError, match=r"must hold each index once, but \d occurs twice"):
        Selection.from_parquet(tmp_path / "foreign.parquet", target)
