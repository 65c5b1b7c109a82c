from __future__ import annotations

import itertools

import pytest
import torch

from lightning_fairprune import select
from lightning_fairprune.geometry import class_k_center, k_center


def brute_force(features: torch.Tensor, budget: int, *, first: int | None = None) -> list[int]:
    """The minimum over a table of all distances, as float64 differences."""
    x = features.double()
    distance = (x[:, None] - x).square().sum(2).sqrt()
    nearest = (x - x.mean(0)).square().sum(1).sqrt().argmin()
    order = [int(nearest) if first is None else first]
    while len(order) < budget:
        bound = distance[:, order].amin(1)
        bound[order] = -1
        order.append(int(bound.argmax()))
    return order


def problem(seed: int) -> torch.Tensor:
    """A random set of samples; every kind that a rounded distance gets wrong has its turn."""
    g = torch.Generator().manual_seed(seed)
    n = int(torch.randint(2, 60, (), generator=g))
    d = int(torch.randint(1, 20, (), generator=g))
    x = torch.randn(n, d, generator=g)
    match seed % 8:
        case 1:  # copies
            x = x[torch.randint(n, (n,), generator=g)]
        case 2:  # few whole numbers: many samples equally far
            x = torch.randint(3, (n, d), generator=g).float()
        case 3:  # far from 0: the squares of float32 cancel entirely
            x = 1e4 + 0.01 * x
        case 4:  # narrow heaps far apart
            x = 1e-3 * x + 100 * torch.randn(3, d, generator=g)[torch.randint(3, (n,), generator=g)]
        case 5:  # sizes that float32 cannot square
            x = x * 1e25
        case 6:
            x = x.double() * 1e-9 + 1
        case 7:  # a grid on a line, in any order
            x = torch.randperm(n, generator=g)[:, None] * torch.ones(d)
    return x


# --------------------------------------------------------------------- k-center


@pytest.mark.parametrize("seed", range(200))
def test_k_center_equals_brute_force(seed):
    x = problem(seed)
    assert k_center(x, len(x)).tolist() == brute_force(x, len(x))


@pytest.mark.parametrize("seed", range(16))
def test_any_sample_may_be_the_first(seed):
    x = problem(seed)
    first = seed % len(x)
    assert k_center(x, len(x), first=first).tolist() == brute_force(x, len(x), first=first)


@pytest.mark.parametrize(
    ("kind", "n", "d", "budget"),
    [
        ("wide", 3000, 32, 250),
        ("heaps", 3000, 32, 250),
        ("grid", 2500, 2, 200),
        ("line", 3000, 1, 200),
    ],
)
def test_more_samples_than_compete_at_a_time(kind, n, d, budget):
    x = torch.randn(n, d)
    if kind == "heaps":  # so narrow that float32 products must give way to float64
        x = 1e-4 * x + torch.randn(10, d)[torch.arange(n) % 10]
    elif kind == "grid":
        x = torch.cartesian_prod(torch.arange(50.0), torch.arange(50.0))
    elif kind == "line":
        x = torch.arange(float(n))[:, None]
    bound = torch.full((n,), torch.inf, dtype=torch.float64)
    got = k_center(x, budget).tolist()
    nearest = (x.double() - x.double().mean(0)).square().sum(1).sqrt().argmin()
    for turn, chosen in enumerate(got):
        assert chosen == int(bound.argmax() if turn else nearest)
        bound = bound.minimum((x.double() - x[chosen].double()).square().sum(1).sqrt())
        bound[chosen] = -1


def test_equally_far_samples_are_chosen_by_index():
    corners = torch.eye(600)  # all distances are the square root of 2
    assert k_center(corners, 600, first=0).tolist() == list(range(600))
    assert k_center(corners, 600, first=7).tolist() == [7, *range(7), *range(8, 600)]


def test_copies_come_last_by_index():
    x = torch.tensor([[1.0], [0.0], [1.0], [0.0], [5.0], [0.0]])
    assert k_center(x, 6, first=2).tolist() == [2, 4, 1, 0, 3, 5]
    assert k_center(torch.full((700, 3), 0.1), 700).tolist() == list(range(700))
    assert k_center(torch.zeros(3, 2), 2).tolist() == [0, 1]


def test_fewer_samples_are_the_first_of_more():
    x = torch.randn(500, 8)
    whole = k_center(x, 500)
    assert whole.dtype == torch.int64
    assert sorted(whole.tolist()) == list(range(500))
    for budget in (0, 1, 2, 17, 256, 257, 499):
        assert torch.equal(k_center(x, budget), whole[:budget])


def test_samples_that_change_places_are_chosen_in_the_same_order():
    x, move = torch.randn(900, 6), torch.randperm(900)
    assert torch.equal(move[k_center(x[move], 300)], k_center(x, 300))


@pytest.mark.parametrize("seed", range(16))
def test_warm_start_equals_going_on(seed):
    x = problem(seed)
    whole = k_center(x, len(x))
    for begun in range(1, len(x), 11):
        left = len(x) - begun
        assert torch.equal(k_center(x, left, centres=whole[:begun]), whole[begun:])
        # As features, the samples that are centres may be chosen too, where distance 0 is farthest.
        again = k_center(x, left, centres=x[whole[:begun]]).tolist()
        new = [i for i in again if i not in set(whole[:begun].tolist())]
        assert new == whole[begun : begun + len(new)].tolist()


def test_centres_from_elsewhere():
    line = torch.tensor([[0.0], [1.0], [2.0], [8.0], [9.0]])
    assert k_center(line, 3, centres=torch.tensor([[10.0], [7.0]])).tolist() == [0, 2, 1]
    assert torch.equal(k_center(line, 3, centres=torch.zeros(0, 1)), k_center(line, 3))
    many = torch.randn(1000, 5, dtype=torch.float64)
    x = torch.randn(700, 5)
    both = torch.cat([many, x.double()])
    expected = k_center(both, 50, centres=torch.arange(1000)) - 1000
    assert torch.equal(k_center(x, 50, centres=many), expected)


def test_half_precision_is_computed_in_float32():
    x = torch.randn(300, 4)
    for dtype in (torch.float16, torch.bfloat16):
        assert torch.equal(k_center(x.to(dtype), 99), k_center(x.to(dtype).float(), 99))


def test_neither_autocast_nor_low_matmul_precision_changes_the_choice():
    x = 3 + torch.randn(600, 40)
    expected = k_center(x, 200)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(k_center(x, 200), expected)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert torch.equal(k_center(x, 200), expected)
    finally:
        torch.set_float32_matmul_precision(before)


def test_products_in_float64_choose_the_same(monkeypatch):
    from lightning_fairprune.geometry import _farthest

    expected = [k_center(problem(seed), 2) for seed in range(40)]
    monkeypatch.setattr(_farthest, "_products_keep_digits", lambda device: False)
    assert all(torch.equal(k_center(problem(seed), 2), expected[seed]) for seed in range(40))


def test_features_are_left_alone_and_need_no_order_in_memory():
    x = torch.randn(40, 300, requires_grad=True)
    before = x.detach().clone()
    got = k_center(x.T, 30)
    assert torch.equal(x, before)
    assert not got.requires_grad
    assert torch.equal(got, k_center(before.T.contiguous(), 30))


# --------------------------------------------------------------------- k-center in every class


@pytest.mark.parametrize("seed", range(24))
def test_select_keeps_the_first_centres_of_every_class(seed):
    x = problem(seed)
    target = torch.randint(-1, 3, (len(x),))
    score = class_k_center(x, target)
    assert torch.equal(score.isnan(), target < 0)
    sizes = [int((target == k).sum()) for k in range(3)]
    for quota in itertools.product(*(range(0, size + 1, 5) for size in sizes)):
        expected = []
        for k, budget in enumerate(quota):
            own = (target == k).nonzero().flatten()
            expected += own[k_center(x[own], budget)].tolist() if budget else []
        short = class_k_center(x, target, quota)
        for some in (score, short):
            kept = select(target, torch.tensor(quota), score=some, keep="hard")
            assert kept.indices.tolist() == sorted(expected)


def test_class_k_center_is_the_radius_at_which_a_sample_was_chosen():
    x, target = torch.randn(200, 3), torch.arange(200) % 2
    score = class_k_center(x, target, [30, 10])
    for k, budget in ((0, 30), (1, 10)):
        own = (target == k).nonzero().flatten()
        order = own[k_center(x[own], budget)]
        assert score[order[0]] == torch.inf
        for turn in range(1, budget):
            distance = torch.cdist(x[order[turn], None].double(), x[order[:turn]].double()).min()
            torch.testing.assert_close(score[order[turn]], distance)
        assert int((score[own] == -torch.inf).sum()) == 100 - budget
    assert score.dtype == torch.float64


def test_an_int_quota_covers_all_classes_to_the_same_radius():
    x = torch.cat([torch.randn(100, 2), 5 * torch.randn(100, 2)])
    target = torch.arange(200) // 100
    kept = select(target, 40, score=class_k_center(x, target), keep="hard")
    radius = [
        torch.cdist(x[target == k], x[kept.indices[target[kept.indices] == k]]).amin(1).max()
        for k in (0, 1)
    ]
    assert kept.quota[1] > kept.quota[0]
    assert max(radius) < 2 * min(radius)


# --------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("error", "arguments", "message"),
    [
        (ValueError, {"features": torch.zeros(3)}, r"`features` must be .* \[N, D\] .* got \[3\]"),
        (ValueError, {"features": torch.zeros(3, 0)}, r"D at least 1, got \[3, 0\]"),
        (ValueError, {"features": [[1.0]]}, "got list"),
        (TypeError, {"features": torch.zeros(3, 2).long()}, "floating point, got torch.int64"),
        (ValueError, {"features": torch.tensor([[0.0], [torch.nan]])}, "1 of 2 samples.*index 1"),
        (ValueError, {"features": torch.tensor([[torch.inf]])}, "must be finite"),
        (ValueError, {"budget": 6}, "between 0 and the 5 samples that can be chosen, got 6"),
        (ValueError, {"budget": -1}, "got -1"),
        (ValueError, {"budget": 5, "centres": torch.tensor([3])}, "the 4 samples"),
        (TypeError, {"budget": 0.5}, "`budget` must be an int, got 0.5"),
        (ValueError, {"first": 5}, r"`first` must be in \[0, 5\), got 5"),
        (TypeError, {"first": "mean"}, "`first` must be an int"),
        (ValueError, {"first": 1, "centres": torch.tensor([3])}, "`first` has no effect"),
        (TypeError, {"centres": [3]}, "`centres` must be a tensor, got list"),
        (ValueError, {"centres": torch.tensor([-1, 3])}, r"lie in \[0, 5\), got -1 to 3"),
        (ValueError, {"centres": torch.tensor([3, 3])}, "each sample once"),
        (ValueError, {"centres": torch.tensor([True])}, r"got torch.bool of shape \[1\]"),
        (ValueError, {"centres": torch.zeros(1, 3)}, "have the 2 features of `features`, got 3"),
        (ValueError, {"centres": torch.full((1, 2), torch.nan)}, "`centres` must be finite"),
    ],
)
def test_k_center_says_what_is_wrong(error, arguments, message):
    with pytest.raises(error, match=message):
        k_center(**{"features": torch.zeros(5, 2), "budget": 2} | arguments)


@pytest.mark.parametrize(
    ("error", "target", "quota", "message"),
    [
        (ValueError, [0, 1], None, r"`target` must be .* \[3\], one label per sample, got \[2\]"),
        (TypeError, [0.0, 1.0, 1.0], None, "`target` must hold integers"),
        (ValueError, [0, 1, -2], None, ">= -1, got -2"),
        (ValueError, [0, 1, 1], [1], "for each of the 2 classes"),
        (ValueError, [0, 1, 1], [2, 1], "got 2 for class 0, which has 1"),
        (ValueError, [0, 1, 1], [1, 1, 1], "got 1 for class 2, which has 0"),
        (TypeError, [0, 1, 1], [0.5, 1], "`quota` must hold integers"),
    ],
)
def test_class_k_center_says_what_is_wrong(error, target, quota, message):
    with pytest.raises(error, match=message):
        class_k_center(torch.zeros(3, 2), torch.tensor(target), quota)


def test_no_samples():
    assert k_center(torch.zeros(0, 2), 0).shape == (0,)
    assert class_k_center(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64)).shape == (0,)
