"""Functions on recalls: values by hand, slow loops, and what all of them must keep."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from itertools import pairwise
from typing import Any

import oracles_metrics as slow
import pytest
import torch
from torch import Tensor

from lightning_fairprune import recalls

NAN = math.nan

# The function and its loop; both are called with a recall or with a recall and a reference.
SLOW: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "worst": (recalls.worst, lambda r: slow.worst_k(r, 1)),
    "worst_k": (partial(recalls.worst_k, k=1), lambda r: slow.worst_k(r, 1)),
    "worst_2": (
        lambda r: recalls.worst_k(r, 2 if r.numel() > 1 else 1),
        lambda r: slow.worst_k(r, 2),
    ),
    "cvar": (partial(recalls.cvar, level=0.37), lambda r: slow.cvar(r, 0.37)),
    "gap": (recalls.gap, slow.gap),
    "std": (recalls.std, lambda r: slow.std(r, 0)),
    "sample std": (partial(recalls.std, correction=1), lambda r: slow.std(r, 1)),
    "zero_recall": (recalls.zero_recall, lambda r: r.count(0)),
    "balance": (recalls.balance, lambda r: slow.adjusted(r, [0 * x for x in r])),
    "normalised_balance": (recalls.normalised_balance, slow.normalised),
    "change": (recalls.change, slow.change),
    "retention": (recalls.retention, slow.retention),
    "adjusted_change": (recalls.adjusted_change, slow.adjusted),
    "disparity": (recalls.disparity, slow.disparity),
    "class_intensification": (recalls.class_intensification, slow.class_intensification),
    "intensification": (recalls.intensification, slow.intensification),
}


def compares(name: str) -> bool:
    return "reference" in inspect.signature(SLOW[name][0]).parameters


FAMILY = pytest.mark.parametrize("name", SLOW)
COMPARED = pytest.mark.parametrize("name", [*filter(compares, SLOW)])


def per_class(name: str) -> bool:
    return call(name, torch.rand(7)).ndim == 1


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Recalls with missing classes and zeros."""
    generator = torch.Generator().manual_seed(seed)
    recall = torch.randint(0, 21, shape, generator=generator).double() / 20
    return recall.masked_fill(torch.rand(shape, generator=generator) < 0.2, torch.nan)


def call(name: str, recall: Tensor, reference: Tensor | None = None) -> Tensor:
    fn = SLOW[name][0]
    if not compares(name):
        value: Tensor = fn(recall)
        return value
    if reference is None:
        reference = draw(*recall.shape, seed=99).to(recall)
    return fn(recall, reference)


def exact(recall: Tensor) -> list[Any]:
    return [r if math.isnan(r) else Fraction(r).limit_denominator(20) for r in recall.tolist()]


def oracle(name: str, recall: Tensor, reference: Tensor) -> Tensor:
    lists = [exact(recall), exact(reference)][: 1 + compares(name)]
    return torch.tensor(slow.inexact(SLOW[name][1](*lists)), dtype=torch.float64)


def same(a: Tensor, b: Tensor, **tolerance: float) -> None:
    torch.testing.assert_close(a, b, equal_nan=True, **tolerance)


def test_every_function_has_a_slow_loop() -> None:
    elsewhere = {"groups", "empirical_bayes"}  # tested in files of their own
    assert set(recalls.__all__) == set(SLOW) - {"worst_2", "sample std"} | elsewhere


@FAMILY
@pytest.mark.parametrize("size", [1, 2, 3, 10, 57])
def test_the_slow_loop_agrees(name: str, size: int) -> None:
    for seed in range(20):
        recall, reference = draw(size, seed=seed), draw(size, seed=seed + 100)
        value = call(name, recall, reference)
        same(value, oracle(name, recall, reference).to(value.dtype), atol=1e-12, rtol=1e-9)


@FAMILY
def test_the_order_of_classes_does_not_matter(name: str) -> None:
    recall, reference = draw(31), draw(31, seed=1)
    order = torch.randperm(31)
    value = call(name, recall, reference)
    same(call(name, recall[order], reference[order]), value[order] if value.ndim else value)


@FAMILY
def test_a_class_without_support_might_as_well_not_exist(name: str) -> None:
    recall, reference = torch.rand(8).double(), torch.rand(8).double()
    for missing in ([0], [7], [2, 3, 5]):
        kept = torch.tensor([k for k in range(8) if k not in missing])
        short = call(name, recall[kept], reference[kept])
        gone = torch.zeros(8, dtype=torch.bool).index_fill(0, torch.tensor(missing), True)
        pairs = [(recall.masked_fill(gone, torch.nan), reference)]
        if compares(name):
            pairs.append((recall, reference.masked_fill(gone, torch.nan)))
        for pair in pairs:
            value = call(name, *pair)
            same(value[kept] if value.ndim else value, short)
            assert not value.ndim or value[gone].isnan().all()


@FAMILY
def test_a_batch_is_a_loop(name: str) -> None:
    recall, reference = draw(4, 3, 9), draw(4, 3, 9, seed=1)
    value = call(name, recall, reference)
    assert value.shape == ((4, 3, 9) if per_class(name) else (4, 3))
    for i in range(4):
        for j in range(3):
            same(value[i, j], call(name, recall[i, j], reference[i, j]))


@COMPARED
def test_one_reference_for_a_batch_of_recalls(name: str) -> None:
    recall, reference = draw(4, 9), draw(9, seed=1)
    same(call(name, recall, reference), call(name, recall, reference.expand(4, 9)))


@FAMILY
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(name: str, dtype: torch.dtype) -> None:
    recall, reference = draw(40).to(dtype), draw(40, seed=1).to(dtype)
    value = call(name, recall, reference)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert value.dtype == (torch.int64 if name == "zero_recall" else wide)
    same(value, call(name, recall.to(wide), reference.to(wide)))


@FAMILY
def test_no_support_at_all_is_nan(name: str) -> None:
    value = call(name, torch.full((5,), torch.nan))
    assert value == 0 if name == "zero_recall" else value.isnan().all()


@FAMILY
def test_one_class(name: str) -> None:
    value = call(name, torch.tensor([0.5]), torch.tensor([0.75]))
    expected = {"worst": 0.5, "worst_k": 0.5, "worst_2": 0.5, "cvar": 0.5, "sample std": NAN}
    expected |= {"change": -0.25, "retention": 2 / 3}
    expected |= {"intensification": NAN, "class_intensification": NAN}
    assert value.reshape(()).item() == pytest.approx(expected.get(name, 0), nan_ok=True)


@FAMILY
def test_as_many_classes_as_imagenet_21k(name: str) -> None:
    recall, reference = draw(21_841), draw(21_841, seed=1)
    value = call(name, recall, reference)
    if "std" not in name:  # exact squares take seconds
        same(value, oracle(name, recall, reference).to(value.dtype), atol=1e-9, rtol=1e-9)
    single = call(name, recall.float(), reference.float())
    same(single.to(value.dtype), value, atol=1e-5, rtol=1e-4)


@FAMILY
def test_nothing_is_read_back_from_the_device(name: str) -> None:
    # Tensors without data cannot be read.
    recall = torch.rand(3, 7, device="meta")
    assert call(name, recall, recall).device.type == "meta"


@FAMILY
def test_arguments_are_left_alone(name: str) -> None:
    recall, reference = draw(9), draw(9, seed=1)
    before = recall.clone(), reference.clone()
    call(name, recall, reference)
    same(recall, before[0])
    same(reference, before[1])


@FAMILY
@pytest.mark.parametrize(
    ("recall", "error", "match"),
    [
        (torch.tensor([1, 0]), TypeError, "`recall` must be floating point, got torch.int64: divi"),
        (
            torch.rand(()),
            ValueError,
            r"`recall` must be \[..., K\] with at least one class, got \[",
        ),
        (torch.rand(3, 0), ValueError, r"got \[3, 0\]"),
    ],
    ids=["int", "scalar", "empty"],
)
def test_bad_recalls_are_refused(name: str, recall: Tensor, error: type, match: str) -> None:
    with pytest.raises(error, match=match):
        call(name, recall, torch.rand(2))
    if compares(name):
        with pytest.raises(error, match=match.replace("`recall`", "`reference`")):
            call(name, torch.rand(2), recall)


@COMPARED
def test_a_reference_for_other_classes_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="must be for the 3 classes of `recall`, got 1"):
        call(name, torch.rand(3), torch.rand(1))


def test_cvar_between_its_ends() -> None:
    recall = draw(11)
    same(recalls.cvar(recall, 1.0), recall.nanmean())
    same(recalls.cvar(recall, 1e-6), recalls.worst(recall))
    same(recalls.cvar(recall, 2 / (~recall.isnan()).sum().item()), recalls.worst_k(recall, 2))
    levels = [recalls.cvar(recall, level / 10).item() for level in range(1, 11)]
    assert all(a <= b + 1e-12 for a, b in pairwise(levels))


def test_worst_k_takes_what_there_is() -> None:
    same(recalls.worst_k(torch.tensor([0.5, NAN, 0.7, NAN]), 3), torch.tensor(0.6))


@pytest.mark.parametrize("accuracy", [0.6, torch.tensor(0.6), torch.tensor(0.6).double()])
def test_a_given_accuracy_takes_the_place_of_the_mean(accuracy: float | Tensor) -> None:
    recall, reference = torch.tensor([0.9, 0.5]), torch.tensor([1.0, 0.8])
    same(recalls.balance(recall, accuracy), torch.tensor([0.3, -0.1]))
    same(recalls.normalised_balance(recall, accuracy), torch.tensor([0.5, -1 / 6]))
    # The reference's mean is .9.
    same(recalls.adjusted_change(recall, reference, accuracy), torch.tensor([0.2, 0.0]))
    same(recalls.disparity(recall, reference, accuracy, 0.8), torch.tensor(0.1))
    # Normalised balances 1/2 and -1/6 against 1/9 and -1/9.
    same(recalls.class_intensification(recall, reference, accuracy), torch.tensor([4.5, 1.5]))
    same(recalls.intensification(recall, reference, accuracy), torch.tensor(3.0))
    # Against 1/4 and 0.
    same(recalls.intensification(recall, reference, accuracy, 0.8), torch.tensor(2.0))
    same(recalls.class_intensification(recall, reference, accuracy, 0.8), torch.tensor([2.0, NAN]))


def test_an_accuracy_for_each_row() -> None:
    recall, accuracy = torch.rand(4, 6), torch.rand(4)
    same(recalls.balance(recall, accuracy), recall - accuracy[:, None])
    rows = [recalls.normalised_balance(r, float(a)) for r, a in zip(recall, accuracy, strict=True)]
    same(recalls.normalised_balance(recall, accuracy), torch.stack(rows))


def test_the_example_of_the_paper() -> None:
    now, before = torch.tensor([0.7, 0.5]).double(), torch.tensor([0.9, 0.7]).double()
    same(recalls.normalised_balance(before), torch.tensor([1 / 8, -1 / 8]).double())
    same(recalls.normalised_balance(now), torch.tensor([1 / 6, -1 / 6]).double())
    same(recalls.class_intensification(now, before), torch.tensor([4 / 3, 4 / 3]).double())
    same(recalls.intensification(now, before), torch.tensor(4 / 3).double())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("size", [1, 3, 10, 1000, 21_841])
def test_no_slope_over_rounding(dtype: torch.dtype, size: int) -> None:
    # The mean of equal recalls is another number in the last digits.
    for level in (0.7, 0.1, 1 / 3, 1.0):
        before = torch.full((size,), level, dtype=dtype)
        now = torch.rand(size, dtype=dtype)
        assert recalls.intensification(now, before).isnan()
        assert recalls.class_intensification(now, before).isnan().all()


@pytest.mark.parametrize("fn", [recalls.intensification, recalls.class_intensification])
def test_an_accuracy_of_zero_has_no_intensification(fn: Callable[..., Tensor]) -> None:
    some, none = torch.tensor([0.2, 0.8]), torch.zeros(2)
    assert fn(none, some).isnan().all()
    assert fn(some, none).isnan().all()
    assert fn(some, some, 0.0).isnan().all()
    assert fn(some, some, None, torch.tensor(0.0)).isnan().all()


def test_the_reference_against_itself() -> None:
    recall = draw(12)
    same(recalls.intensification(recall, recall), torch.tensor(1.0).double())
    same(recalls.disparity(recall, recall), torch.tensor(0.0).double(), atol=1e-15, rtol=0)
    kept = recalls.retention(recall, recall)
    assert ((kept == 1) | recall.isnan() | (recall == 0)).all()


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        (lambda r: recalls.worst_k(r, 0), "`k` must be between 1 and the 3 classes, got 0"),
        (lambda r: recalls.cvar(r, 0.0), r"`level` must be in \(0, 1\], got 0.0"),
        (lambda r: recalls.cvar(r, 1.1), "got 1.1"),
        (lambda r: recalls.cvar(r, NAN), "got nan"),
        (lambda r: recalls.std(r, correction=2), "`correction` must be 0 .* or 1 .*, got 2"),
    ],
)
def test_arguments_out_of_range_are_refused(bad: Callable[[Tensor], Tensor], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        bad(torch.rand(3))


def test_groups_are_cells_of_a_table() -> None:
    label, attribute = torch.tensor([[0, 1], [2, 2]]), torch.tensor([[2, 0], [1, 2]])
    assert recalls.groups(label, attribute, 3).tolist() == [[2, 3], [7, 8]]
    unknown = recalls.groups(torch.tensor([-1, 0, 0, -100]), torch.tensor([0, -1, 3, 5]), 3)
    assert unknown.tolist() == [-1] * 4


def test_groups_of_small_integers_do_not_overflow() -> None:
    label = torch.tensor([200], dtype=torch.uint8)
    assert recalls.groups(label, torch.tensor([True]), 2).tolist() == [401]


@pytest.mark.parametrize(
    ("label", "attributes", "match"),
    [
        (torch.zeros(3), 2, r"`attribute` must have one value for each label, got \[2\] for \[3\]"),
        (torch.zeros(2), 0, "`num_attributes` must be at least 1, got 0"),
    ],
)
def test_bad_groups_are_refused(label: Tensor, attributes: int, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        recalls.groups(label.long(), torch.zeros(2).long(), attributes)
