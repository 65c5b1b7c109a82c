"""Offsets: values by hand, grids of all offsets, and what every fit must keep."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_fairprune.offsets import cross_fitted, fit, frontier


def drawn(
    n: int = 600, classes: int = 3, seed: int = 0, noise: float = 1.5, shift: float = 1.5
) -> tuple[Tensor, Tensor]:
    """Logits of a model that predicts the first classes too often."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.arange(n) % classes
    logits = noise * torch.randn(n, classes, generator=generator)
    logits[torch.arange(n), target] += 1.5
    return logits - shift * torch.arange(classes), target


def recall(logits: Tensor, target: Tensor, by: Tensor | None = None) -> Tensor:
    right, by = (logits.argmax(1) == target).double(), target if by is None else by
    return torch.stack([right[by == k].mean() for k in range(int(by.max()) + 1)])


# 1. By hand.


def test_a_class_that_is_predicted_too_seldom_gains() -> None:
    logits = torch.tensor([[2.0, 0.0], [2.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    target = torch.tensor([0, 0, 1, 1])
    found = fit(logits, target, max_average_loss=0)
    assert recall(logits + found, target).tolist() == [1, 1]
    # Between 1 and 2 lies the difference that gets all four right.
    assert 1 < found[1] - found[0] < 2
    assert found.sum().abs() < 1e-6
    assert found.dtype == torch.float32


def test_the_frontier_starts_without_offsets_and_holds_the_recalls_of_its_offsets() -> None:
    logits, target = drawn()
    found = frontier(logits, target)
    assert found.offsets[0].tolist() == [0, 0, 0]
    for one, of_classes, worst, average in zip(*found, strict=True):
        expected = recall(logits + one, target)
        torch.testing.assert_close(of_classes, expected)
        assert worst == pytest.approx(expected.min().item())
        assert average == pytest.approx(expected.mean().item())


def test_of_equal_logits_the_first_counts() -> None:
    # Class 1 has the same logit as class 0 and is never predicted; class 0 as class 1 and is.
    logits = torch.zeros(4, 3, dtype=torch.bfloat16)
    found = frontier(logits, torch.tensor([0, 0, 1, 2]))
    assert found.recall[0].tolist() == [1, 0, 0]


def test_a_class_without_samples_gets_the_mean_of_the_others() -> None:
    logits, target = drawn(classes=4)
    some = target != 2
    found = fit(logits[some], target[some])
    assert found[2] == 0
    assert found[[0, 1, 3]].sum().abs() < 1e-5
    assert frontier(logits[some], target[some]).recall[:, 2].isnan().all()


def test_good_recalls_stay_as_they_are() -> None:
    logits, target = drawn(noise=0.01, shift=0)
    assert recall(logits + fit(logits, target), target).tolist() == [1, 1, 1]


# 2. Against all offsets of a grid.


def best_of_grid(logits: Tensor, target: Tensor, max_average_loss: float) -> float:
    """Returns the highest worst recall of all offsets whose average is high enough."""
    steps = torch.arange(-2, 6.01, 0.1 if logits.shape[1] == 2 else 0.25)
    rest = itertools.product(steps.tolist(), repeat=logits.shape[1] - 1)
    recalls = torch.stack([recall(logits + torch.tensor([0.0, *b]), target) for b in rest])
    average = recalls.mean(1)
    return float(recalls.amin(1)[average >= average.max() - max_average_loss].max())


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("max_average_loss", [0.01, 0.02, 1.0])
def test_the_worst_class_is_close_to_the_best_of_a_grid(
    classes: int, max_average_loss: float
) -> None:
    logits, target = drawn(classes=classes, n=1200)
    worst = recall(logits + fit(logits, target, max_average_loss=max_average_loss), target).min()
    assert worst >= best_of_grid(logits, target, max_average_loss) - 0.03
    assert worst > recall(logits, target).min() + 0.2


@pytest.mark.parametrize("max_average_loss", [0.0, 0.005, 0.02, 0.1])
def test_the_average_falls_by_no_more_than_it_may(max_average_loss: float) -> None:
    logits, target = drawn(shift=0)
    logits[target == 2] += 2 * torch.eye(3)[1]  # a class that is hard to tell from another
    found = frontier(logits, target)
    now = recall(logits + fit(logits, target, max_average_loss=max_average_loss), target)
    assert now.mean() >= found.average.max() - max_average_loss - 1e-9
    assert now.mean() >= recall(logits, target).mean() - max_average_loss - 1e-9


def test_more_loss_is_never_worse_for_the_worst_class() -> None:
    logits, target = drawn(shift=0)
    logits[target == 2] += 2 * torch.eye(3)[1]
    losses = (0.0, 0.005, 0.01, 0.02, 0.05, 1.0)
    worst = [recall(logits + fit(logits, target, max_average_loss=x), target).min() for x in losses]
    assert worst == sorted(worst)
    assert worst[-1] > worst[0] + 0.05


# 3. What every fit must keep.


def test_the_order_of_the_samples_does_not_matter() -> None:
    logits, target = drawn()
    order = torch.randperm(len(target), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(fit(logits, target), fit(logits[order], target[order]))


def test_the_order_of_the_classes_does_not_matter() -> None:
    logits, target = drawn()
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(
        fit(logits, target)[order], fit(logits[:, order], order.argsort()[target])
    )


def test_a_number_added_to_all_logits_of_a_sample_does_not_matter() -> None:
    logits, target = drawn()
    moved = logits + torch.arange(len(target)).unsqueeze(1) % 7
    torch.testing.assert_close(fit(moved, target), fit(logits, target), rtol=0, atol=1e-4)


def test_it_does_not_change_its_arguments_and_gives_the_same_again() -> None:
    logits, target = drawn()
    before = logits.clone()
    assert torch.equal(fit(logits, target), fit(logits, target))
    assert torch.equal(logits, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_give_nearly_the_same(dtype: torch.dtype) -> None:
    logits, target = drawn()
    rounded = logits.to(dtype)
    torch.testing.assert_close(fit(rounded, target), fit(rounded.float(), target))


def test_closed_classes_are_no_fault() -> None:
    logits, target = drawn(classes=4)
    logits[target == 0, 3] = -torch.inf
    assert fit(logits, target).isfinite().all()


def test_weights_say_what_the_average_is_of() -> None:
    logits, target = drawn(shift=0)
    logits[target == 2] += 2 * torch.eye(3)[1]
    weights = torch.tensor([0.1, 0.8, 0.1])
    found = frontier(logits, target, weights=weights)
    torch.testing.assert_close(found.average, found.recall @ weights.double())
    plain = recall(logits + fit(logits, target, max_average_loss=0), target)
    heavy = recall(logits + fit(logits, target, max_average_loss=0, weights=weights), target)
    assert heavy[1] > plain[1]


def test_the_worst_of_groups_while_offsets_are_of_classes() -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.arange(1200) % 2
    place = (torch.rand(1200, generator=generator) < 0.1).long()
    group = 2 * target + place
    logits = torch.randn(1200, 2, generator=generator)
    logits[torch.arange(1200), target] += 2.0
    # One group, a tenth of class 1, is taken for class 0.
    logits[group == 3] += torch.tensor([3.0, 0.0])
    before = recall(logits, target, group).min()
    found = frontier(logits, target, groups=group)
    torch.testing.assert_close(found.worst[0], before)
    after = recall(logits + fit(logits, target, groups=group, max_average_loss=1), target, group)
    by_class = recall(logits + fit(logits, target, max_average_loss=1), target, group)
    assert after.min() > max(before, by_class.min()) + 0.2


def test_groups_that_are_the_classes_change_nothing() -> None:
    logits, target = drawn()
    torch.testing.assert_close(fit(logits, target, groups=target), fit(logits, target))


@pytest.mark.parametrize("function", [fit, frontier, cross_fitted])
@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"logits": torch.zeros(4, 3, dtype=torch.int64)}, TypeError, "floating point"),
        ({"logits": torch.zeros(4)}, ValueError, r"\[N, K\]"),
        ({"target": torch.zeros(4)}, TypeError, "whole numbers"),
        ({"target": torch.zeros(3, dtype=torch.int64)}, ValueError, "one for each row"),
        ({"target": torch.tensor([0, 1, 2, 3])}, ValueError, r"in \[0, 3\)"),
        ({"target": torch.tensor([0, 1, 2, -100])}, ValueError, "leave other samples out"),
        ({"groups": torch.tensor([0, 1, 2, -1])}, ValueError, "0 or more"),
        ({"weights": [1.0, 1.0]}, ValueError, "3 finite numbers"),
        ({"weights": [0.0, 0.0, 0.0]}, ValueError, "above 0"),
        ({"logits": torch.full((4, 3), torch.nan)}, ValueError, "finite"),
        ({"logits": torch.zeros(0, 3), "target": torch.zeros(0).long()}, ValueError, "one sample"),
    ],
)
def test_wrong_arguments(
    function: Callable[..., Any], change: dict[str, Any], error: type[Exception], words: str
) -> None:
    given = {"logits": torch.randn(4, 3), "target": torch.tensor([0, 1, 2, 0])} | change
    more = {"folds": 2} if function is cross_fitted else {}
    with pytest.raises(error, match=words):
        function(**given, **more)


@pytest.mark.parametrize("loss", [-0.01, 1.5])
def test_a_loss_out_of_range(loss: float) -> None:
    for function in (fit, cross_fitted):
        with pytest.raises(ValueError, match="max_average_loss"):
            function(*drawn(), max_average_loss=loss)


# 4. Cross-fitted.


def test_cross_fitted_is_the_fit_on_the_other_folds() -> None:
    logits, target = drawn(n=6, classes=2)
    found = cross_fitted(logits, target, folds=6)
    for i in range(6):
        rest = torch.arange(6) != i
        expected = (logits[i] + fit(logits[rest], target[rest])).argmax()
        assert found[i] == expected


def test_cross_fitted_is_lower_than_fitted_where_there_is_nothing_to_learn() -> None:
    gaps = []
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        target = torch.arange(60) % 3
        logits = torch.randn(60, 3, generator=generator)
        fitted = recall(logits + fit(logits, target, max_average_loss=1), target).min()
        found = cross_fitted(logits, target, max_average_loss=1)
        honest = torch.stack([(found == target)[target == k].double().mean() for k in range(3)])
        gaps.append(float(fitted - honest.min()))
    assert sum(gaps) / len(gaps) > 0.02


def test_cross_fitted_again_and_with_another_seed() -> None:
    logits, target = drawn()
    assert torch.equal(cross_fitted(logits, target), cross_fitted(logits, target))
    assert not torch.equal(cross_fitted(logits, target), cross_fitted(logits, target, seed=1))


@pytest.mark.parametrize("folds", [1, 7])
def test_folds_out_of_range(folds: int) -> None:
    with pytest.raises(ValueError, match="`folds`"):
        cross_fitted(*drawn(n=6), folds=folds)


def test_a_class_with_one_sample_is_no_fault() -> None:
    logits, target = drawn()
    assert cross_fitted(logits, target.where(torch.arange(600) > 0, 2)).shape == (600,)
    alone = torch.cat([torch.zeros(1).long(), 1 + target[1:] % 2])
    assert cross_fitted(logits, alone).shape == (600,)
