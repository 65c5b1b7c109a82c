"""Class counts against scikit-learn and against loops."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import ranks
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, recall_score
from torch import Tensor

from lightning_fairprune.counts import ClassCounts, Counting, Tally, count, counts_of


def predictions(seed: int, n: int = 200, num_classes: int = 6) -> tuple[Tensor, Tensor]:
    """Logits and labels; the last class is missing."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, num_classes - 1, (n,), generator=generator)
    logits = torch.randn(n, num_classes, generator=generator)
    logits[torch.arange(n), target] += 0.7
    return logits, target


def slow_counts(right: list[bool], label: list[int], size: int) -> tuple[list[int], list[int]]:
    tp, support = [0] * size, [0] * size
    for hit, k in zip(right, label, strict=True):
        support[k] += 1
        tp[k] += hit
    return tp, support


@pytest.mark.parametrize("seed", range(5))
def test_everything_derived_is_scikit_learns(seed: int) -> None:
    logits, target = predictions(seed)
    pred = logits.argmax(1)
    counts = ClassCounts(*count(pred, target, 6))
    recall = recall_score(target, pred, labels=range(5), average=None)
    assert counts.recall[:5].tolist() == pytest.approx(recall.tolist(), abs=1e-15)
    assert counts.recall[5].isnan()
    assert counts.accuracy == pytest.approx(accuracy_score(target, pred))
    macro = recall_score(target, pred, labels=range(5), average="macro")
    assert counts.mean == pytest.approx(macro)
    assert counts.worst == pytest.approx(recall.min())
    assert counts.gap == pytest.approx(recall.max() - recall.min())
    assert counts.std == pytest.approx(recall.std())
    assert counts.num_classes == 6


def test_shrinkage_pulls_towards_the_mean() -> None:
    counts = ClassCounts(torch.tensor([9, 3, 0]), torch.tensor([10, 5, 0]))
    # Mean recall .75; two pseudo-samples add 1.5 true positives.
    expected = pytest.approx([10.5 / 12, 4.5 / 7, math.nan], nan_ok=True)
    assert counts.shrunk_recall(2).tolist() == expected
    assert torch.equal(counts.shrunk_recall(0)[:2], counts.recall[:2])
    assert counts.shrunk_recall(0)[2].isnan()
    assert counts.shrunk_recall(1e12).tolist() == pytest.approx([0.75, 0.75, math.nan], nan_ok=True)


def test_pooled_counts_are_those_of_all_samples_together() -> None:
    logits, target = predictions(1)
    pred = logits.argmax(1)
    parts = [ClassCounts(*count(pred[i::3], target[i::3], 6)) for i in range(3)]
    pooled = ClassCounts.pooled(parts)
    tp, support = count(pred, target, 6)
    assert torch.equal(pooled.tp, tp)
    assert torch.equal(pooled.support, support)


def test_no_support_at_all_is_nan() -> None:
    counts = ClassCounts(torch.zeros(2).long(), torch.zeros(2).long())
    for value in (counts.worst, counts.gap, counts.std, counts.mean, counts.accuracy):
        assert math.isnan(value)


def test_one_class_has_neither_gap_nor_spread() -> None:
    counts = ClassCounts(torch.tensor([3]), torch.tensor([4]))
    assert (counts.worst, counts.mean, counts.gap, counts.std) == (0.75, 0.75, 0, 0)


@pytest.mark.parametrize(
    ("tp", "support", "match"),
    [
        ([1, 2], [3], r"must both be \[K\], got \[2\] and \[1\]"),
        ([[1]], [[1]], r"must both be \[K\], got \[1, 1\] and \[1, 1\]"),
        ([1, 4], [2, 3], "`tp` must be between 0 and `support`, got 4 of 3 for class 1"),
        ([-1, 0], [2, 3], "got -1 of 2 for class 0"),
    ],
)
def test_impossible_counts_are_refused(tp: Any, support: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        ClassCounts(torch.tensor(tp), torch.tensor(support))


def test_pooling_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="`counts` must hold at least one"):
        ClassCounts.pooled([])


def test_labels_out_of_range_are_not_counted() -> None:
    tp, support = count(torch.tensor([0, 1, 0, 1]), torch.tensor([0, -100, 7, 1]), 2)
    assert (tp.tolist(), support.tolist()) == ([1, 1], [1, 1])
    tp, support = count(torch.tensor([True] * 3), torch.tensor([0, -100, 7]), 2)
    assert (tp.tolist(), support.tolist()) == ([1, 0], [1, 0])


INF, NAN = math.inf, math.nan


def by_counting(logits: Tensor, target: Tensor) -> ClassCounts:
    return Counting(logits.shape[1]).count(logits, target)


def by_tally(logits: Tensor, target: Tensor) -> ClassCounts:
    return tally_of(logits, target, batch=1).compute()


@pytest.mark.parametrize("counts", [by_counting, by_tally])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("row", "predicted"),
    [
        ([0, 2, 1], 1),
        ([2, 0, 2], 0),  # of equal ones the first
        ([1, 1, 1], 0),
        ([-INF, -3, -INF], 1),  # classes that are closed
        ([-INF, 1, 1], 1),
        ([-INF, -INF, -60_000], 2),
        ([-INF, -INF, -INF], None),
        ([0, INF, 1], None),
        ([INF, 0, INF], None),
        ([-INF, INF, 0], None),
        ([0, NAN, 1], None),
        ([NAN, 5, 1], None),
        ([-INF, NAN, INF], None),
        ([NAN, NAN, NAN], None),
    ],
    ids=str,
)
def test_the_prediction_is_the_first_of_the_highest_which_must_be_finite(
    row: list[float], predicted: int | None, dtype: torch.dtype, counts: Any
) -> None:
    logits, target = torch.tensor([row, [9, 0, 0]], dtype=dtype), torch.tensor([0, 0])
    for label in range(3):
        target[0] = label
        if predicted is None:
            with pytest.raises(ValueError, match=r"of 1 .*samples are not finite"):
                counts(logits, target)
        else:
            found = counts(logits, target)
            assert found.tp.sum() == 1 + (label == predicted)
            assert found.support.tolist() == [1 + (label == 0), int(label == 1), int(label == 2)]


@given(
    st.lists(
        st.tuples(
            st.lists(st.sampled_from([-INF, -1.0, 0.0, 2.0]), min_size=4, max_size=4),
            st.integers(0, 3),
        ),
        min_size=1,
        max_size=30,
    ),
    st.integers(1, 8),
)
def test_both_ways_to_count_agree(samples: list[tuple[list[float], int]], batch: int) -> None:
    logits = torch.tensor([row for row, _ in samples])
    target = torch.tensor([label for _, label in samples])
    try:
        one = by_counting(logits, target)
    except ValueError:
        with pytest.raises(ValueError, match="not finite"):
            tally_of(logits, target, batch=batch).compute()
        return
    other = tally_of(logits, target, batch=batch, group=target).compute()
    assert one.tp.tolist() == other.tp.tolist()
    assert one.support.tolist() == other.support.tolist()


def tally_of(logits: Tensor, target: Tensor, *, batch: int, group: Tensor | None = None) -> Tally:
    tally = Tally(groupings=group is not None)
    for i in range(0, len(target), batch):
        part = slice(i, i + batch)
        tally.update(logits[part], target[part], *([] if group is None else [group[part]]))
    return tally


def test_tally_takes_steps_that_use_their_memory_again() -> None:
    logits, target = torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)
    tally = Tally()
    for k in range(3):  # batches wait to be looked at; by then these hold the last one
        logits.zero_()[:, k] = 1
        target.fill_(k)
        tally.update(logits, target)
    assert tally.compute().tp.tolist() == [2, 2, 2]


def test_tally_takes_batches_with_other_numbers_of_classes() -> None:
    tally = Tally()
    for classes in (3, 5, 3):
        tally.update(torch.eye(classes), torch.arange(classes))
    assert tally.compute().tp.tolist() == [3, 3, 3, 1, 1]


@pytest.mark.parametrize("batch", [1, 7, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tally_is_a_slow_loop_however_batches_split(batch: int, dtype: torch.dtype) -> None:
    logits, target = predictions(2)
    logits = logits.to(dtype)
    tally = tally_of(logits, target, batch=batch)
    counts = tally.compute()
    right = [int(z.argmax()) == int(y) for z, y in zip(logits, target, strict=True)]
    expected = slow_counts(right, target.tolist(), 6)
    assert (counts.tp.tolist(), counts.support.tolist()) == expected
    assert len(tally) == 200


def test_order_of_samples_does_not_matter() -> None:
    logits, target = predictions(3)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    one = tally_of(logits, target, batch=9).compute()
    other = tally_of(logits[order], target[order], batch=13).compute()
    assert torch.equal(one.tp, other.tp)
    assert torch.equal(one.support, other.support)


def test_groups_take_the_place_of_classes() -> None:
    logits, target = predictions(4)
    group = torch.arange(200) % 8 // 2 * 2  # 0, 2, 4, 6: some have no samples
    counts = tally_of(logits, target, batch=32, group=group).compute(grouped=True)
    right = (logits.argmax(1) == target).tolist()
    expected = slow_counts(right, group.tolist(), 7)
    assert (counts.tp.tolist(), counts.support.tolist()) == expected


def test_groups_that_were_not_announced_are_refused() -> None:
    logits, target = predictions(6)
    with pytest.raises(ValueError, match="`groups` must be 0 tensors, as `groupings` says, got 1"):
        Tally().update(logits, target, target)
    with pytest.raises(ValueError, match="`groups` must be 1 tensors"):
        Tally(1).update(logits, target)


def test_several_tallies_and_groupings_are_summed_once() -> None:
    logits, target = predictions(9)
    groups = [torch.arange(200) % 3, torch.arange(200) // 100 + 2]
    tallies = [Tally(2), Tally(2), Tally(2)]
    for i in range(0, 200, 20):
        part = slice(i, i + 20)
        tallies[i % 40 // 20].update(logits[part], target[part], *(g[part] for g in groups))
    calls = []

    def reduce(tensor: Tensor) -> Tensor:
        calls.append(tensor)
        return tensor

    found = counts_of(tallies, reduce_sum=reduce, reduce_max=reduce)
    assert len(calls) == 2
    right = (logits.argmax(1) == target).tolist()
    for turn, counts in enumerate(found[:2]):
        mine = [j for j in range(200) if j // 20 % 2 == turn]
        for ids, size, one in zip([target, *groups], (6, 3, 4), counts, strict=True):
            expected = slow_counts([right[j] for j in mine], ids[mine].tolist(), size)
            assert (one.tp.tolist(), one.support.tolist()) == expected
    assert [one.num_classes for one in found[2]] == [0, 0, 0]


def test_a_label_out_of_range_is_refused_among_groups_too() -> None:
    logits, target = predictions(6)
    target[5] = -100
    tally = tally_of(logits, target, batch=50, group=torch.zeros(200).long())
    with pytest.raises(ValueError, match="1 validation samples have a label outside"):
        tally.compute(grouped=True)


def test_one_class() -> None:
    counts = tally_of(torch.zeros(5, 1), torch.zeros(5).long(), batch=2).compute()
    assert (counts.tp.tolist(), counts.support.tolist()) == ([5], [5])


def test_empty_tally_has_no_classes() -> None:
    for grouped in (False, True):
        counts = Tally(1).compute(grouped=grouped)
        assert counts.num_classes == 0
        assert math.isnan(counts.worst)


def broken(value: float) -> tuple[Tensor, Tensor]:
    logits, target = predictions(5)
    logits[3, 0] = logits[9, 5] = value
    return logits, target


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_logits_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="logits of 2 validation samples are not finite"):
        tally_of(*broken(value), batch=50).compute()


@pytest.mark.parametrize("label", [-100, -1, 6])
def test_labels_out_of_range_are_refused(label: int) -> None:
    logits, target = predictions(6)
    target[:3] = label
    with pytest.raises(ValueError, match=r"3 validation samples have a label outside \[0, 6\)"):
        tally_of(logits, target, batch=50).compute()


def test_negative_group_is_refused() -> None:
    logits, target = predictions(6)
    tally = tally_of(logits, target, batch=50, group=torch.arange(200) % 3 - 1)
    with pytest.raises(ValueError, match=r"67 validation samples have a group outside \[0, 2\)"):
        tally.compute(grouped=True)


def on_ranks(tallies: list[Tally], **options: Any) -> list[ClassCounts]:
    def of(tally: Tally) -> Callable[..., ClassCounts]:
        return lambda add, most: tally.compute(reduce_sum=add, reduce_max=most, **options)

    return ranks.together([of(tally) for tally in tallies])


@pytest.mark.parametrize("grouped", [False, True])
def test_ranks_agree_with_one_even_if_one_saw_nothing(grouped: bool) -> None:
    logits, target = predictions(7)
    group = torch.arange(200) // 40 if grouped else None
    alone = tally_of(logits, target, batch=8, group=group).compute(grouped=grouped)
    tallies = []
    for part in (slice(0, 100), slice(100, 200)):
        of = None if group is None else group[part]
        tallies.append(tally_of(logits[part], target[part], batch=8, group=of))
    for counts in on_ranks([*tallies, Tally(grouped)], grouped=grouped):
        assert torch.equal(counts.tp, alone.tp)
        assert torch.equal(counts.support, alone.support)


def test_every_rank_raises_for_one_ranks_logits() -> None:
    good, bad = tally_of(*predictions(8), batch=50), tally_of(*broken(torch.nan), batch=50)

    def caught(tally: Tally) -> Callable[..., str]:
        def run(add: Any, most: Any) -> str:
            with pytest.raises(ValueError, match="2 validation samples") as error:
                tally.compute(reduce_sum=add, reduce_max=most)
            return str(error.value)

        return run

    first, second = ranks.together([caught(good), caught(bad)])
    assert first == second


@pytest.mark.parametrize(
    ("mine", "other", "first"),
    [
        ([100, 100], [100, 100], None),
        ([100, 100], [108, 92], None),
        ([100, 100], [100, 109], 1),
        ([5000, 100], [5050, 100], None),
        ([5000, 100], [5051, 100], 0),
        ([0, 9], [9, 0], 0),
    ],
)
def test_a_few_samples_are_no_other_data(mine: Any, other: Any, first: int | None) -> None:
    one, two = (ClassCounts(torch.zeros(2).long(), torch.tensor(n)) for n in (mine, other))
    assert one.first_other_support(two) == two.first_other_support(one) == first
    if first is None:
        one.check_comparable(two, "val")
        return
    with pytest.raises(ValueError, match=f"{other[first]} samples of class {first}, this"):
        one.check_comparable(two, "val")


def test_a_reference_has_the_same_classes() -> None:
    one, two = (ClassCounts(torch.zeros(k).long(), torch.ones(k).long()) for k in (2, 3))
    with pytest.raises(ValueError, match="must have the 2 classes of the model, it has 3"):
        one.check_comparable(two, "val")


@pytest.mark.parametrize("several", [False, True])
def test_slots_of_many_pixels_are_folded(several: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images have a slot for each pixel, which would not fit on a device."""
    from lightning_fairprune.counts import _tally

    def filled() -> Tally:
        generator, tally = torch.Generator().manual_seed(0), Tally(0, -100)
        for k, size in enumerate((50, 70, 30, 90)):
            logits = torch.randn(size, 3 + (k > 1), generator=generator)
            target = torch.randint(0, 3, (size,), generator=generator)
            if several:
                tally.update_labels(logits, torch.nn.functional.one_hot(target, logits.shape[1]))
            else:
                tally.update(logits, target.masked_fill(target == 2, -100))
        return tally

    whole = filled()
    expected = whole.compute()
    monkeypatch.setattr(_tally, "_MOST_SLOTS", 60)
    monkeypatch.setattr(_tally, "_MOST_BATCHES", 1)
    folded = filled()
    assert (
        folded.slots("cpu").shape[1] < 60 * 4 < whole.slots("cpu").shape[1] * (4 if several else 2)
    )
    found = folded.compute()
    assert torch.equal(found.tp, expected.tp)
    assert torch.equal(found.support, expected.support)
    assert len(folded) == len(whole)
