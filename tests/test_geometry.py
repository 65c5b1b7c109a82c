from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_fairprune import geometry, select
from lightning_fairprune.geometry import _centroids as centroids
from lightning_fairprune.geometry import (
    _farthest,
    class_k_center,
    clusters,
    features_of,
    k_center,
    k_center_distance,
    k_means_distance,
    neighbour_distance,
    prototype_distance,
)
from lightning_fairprune.geometry import _neighbours as neighbours

# What a score needs besides features [N, D] and target [N].
SCORES = {
    "class_k_center": class_k_center,
    "k_center_distance": lambda x, target: k_center_distance(x),
    "k_means_distance": lambda x, target: k_means_distance(x, 5),
    "neighbour_distance": lambda x, target: neighbour_distance(x, 4, target=target),
    "prototype_distance": prototype_distance,
}
OTHERS = {"features_of", "k_center"}
every_score = pytest.mark.parametrize("name", SCORES)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """On a busy machine threads wait for each other at every small step."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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


@pytest.mark.parametrize("seed", range(200))
def test_k_center_equals_brute_force_whichever_sample_is_the_first(seed):
    x = problem(seed)
    for first in (None, seed % len(x)):
        assert k_center(x, len(x), first=first).tolist() == brute_force(x, len(x), first=first)


@pytest.mark.parametrize(
    ("kind", "budget"), [("wide", 250), ("heaps", 250), ("grid", 200), ("line", 200)]
)
def test_more_samples_than_compete_at_a_time(kind, budget):
    n = 2500 if kind == "grid" else 3000
    x = torch.randn(n, 32)
    if kind == "heaps":  # so narrow that float32 products must give way to float64
        x = 1e-4 * x + torch.randn(10, 32)[torch.arange(n) % 10]
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
    corners = torch.eye(300)  # all distances are the square root of 2
    assert k_center(corners, 300, first=0).tolist() == list(range(300))
    assert k_center(corners, 300, first=7).tolist() == [7, *range(7), *range(8, 300)]


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


@pytest.mark.parametrize("seed", range(12))
def test_k_center_as_a_score_keeps_what_it_chooses(seed):
    x = problem(seed)
    score, target = k_center_distance(x), torch.zeros(len(x), dtype=torch.int64)
    order = brute_force(x, len(x))
    for budget in range(0, len(x) + 1, 3):
        kept = select(target, budget, score=score, keep="hard").indices.tolist()
        assert kept == sorted(order[:budget])
    for turn in range(1, len(x)):
        distance = torch.cdist(x[order[turn], None].double(), x[order[:turn]].double()).min()
        torch.testing.assert_close(score[order[turn]], distance, atol=1e-6, rtol=1e-6)


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
    centres = [x[kept.indices[target[kept.indices] == k]] for k in (0, 1)]
    radius = [torch.cdist(x[target == k], centres[k]).amin(1).max() for k in (0, 1)]
    assert kept.quota[1] > kept.quota[0]
    assert max(radius) < 2 * min(radius)


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
    ("error", "quota", "message"),
    [
        (ValueError, [1], "for each of the 2 classes"),
        (ValueError, [2, 1], "got 2 for class 0, which has 1"),
        (ValueError, [1, 1, 1], "got 1 for class 2, which has 0"),
        (TypeError, [0.5, 1], "`quota` must hold integers"),
    ],
)
def test_class_k_center_says_what_is_wrong(error, quota, message):
    with pytest.raises(error, match=message):
        class_k_center(torch.zeros(3, 2), torch.tensor([0, 1, 1]), quota)


def test_no_samples():
    assert k_center(torch.zeros(0, 2), 0).shape == (0,)
    assert class_k_center(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64)).shape == (0,)


def labelled(n: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(n, 6) + 2, torch.randint(3, (n,))


def test_every_score_is_listed():
    assert set(SCORES) | OTHERS == set(geometry.__all__)


@every_score
def test_one_number_per_sample_whatever_the_classes_are_called_and_no_gradient(name):
    x, target = labelled()
    got = SCORES[name](x.requires_grad_(), target)
    assert got.shape == (200,)
    assert got.is_floating_point()
    assert not got.requires_grad
    assert not got.isnan().any()
    renamed = torch.tensor([2, 0, 1])[target]
    torch.testing.assert_close(SCORES[name](x, renamed), got)


@every_score
def test_samples_that_change_places_take_their_scores_along(name):
    x, target = labelled()
    if name == "k_means_distance":  # the first are drawn by index: let all draws end alike
        x = torch.randn(5, 6)[torch.arange(200) % 5] + 1e-3 * x
    move = torch.randperm(200)
    moved = SCORES[name](x[move], target[move])
    torch.testing.assert_close(moved, SCORES[name](x, target)[move], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", sorted(set(SCORES) - {"k_means_distance"}))
def test_an_outlier_is_harder(name):  # k-means may give it a cluster of its own
    x, target = labelled()
    x = x + 10
    x[7] *= torch.tensor([3.0, -3, 3, -3, 3, -3])
    score = SCORES[name](x, target)
    own = score[(target == target[7]) & score.isfinite()]
    assert score[7] == own.max()


@every_score
def test_half_precision_is_computed_as_float32_and_that_far_from_zero_as_float64(name):
    x, target = labelled()
    for half in (x.half(), x.bfloat16()):
        assert torch.equal(SCORES[name](half, target), SCORES[name](half.float(), target))
    far = 1e4 + 0.01 * x
    found, exact = (SCORES[name](values, target).double() for values in (far, far.double()))
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-6)


@every_score
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_features_that_are_not_finite_are_refused(name, bad):
    x, target = labelled()
    x[[5, 9], 2] = bad
    with pytest.raises(ValueError, match="2 of 200 samples hold NaN or infinity, first at index 5"):
        SCORES[name](x, target)


@pytest.mark.parametrize("name", ["class_k_center", "prototype_distance", "neighbour_distance"])
def test_samples_of_no_class_get_nan_and_the_others_do_not_notice(name):
    x, target = labelled()
    alone = SCORES[name](x[:150], target[:150])
    target[150:] = -1
    got = SCORES[name](x, target)
    torch.testing.assert_close(got[:150], alone)
    assert got[150:].isnan().all()
    assert SCORES[name](x, torch.full_like(target, -1)).isnan().all()


@pytest.mark.parametrize("name", ["class_k_center", "prototype_distance", "neighbour_distance"])
def test_targets_that_do_not_fit_are_refused(name):
    x, target = labelled()
    with pytest.raises(ValueError, match=r"`target` must be .* \[200\], one label .*got \[199\]"):
        SCORES[name](x, target[1:])
    with pytest.raises(TypeError, match="`target` must hold integers"):
        SCORES[name](x, target.float())
    with pytest.raises(ValueError, match="`target` must be >= -1, got -3"):
        SCORES[name](x, target - 3)


def test_prototype_distance_equals_a_loop():
    x, target = labelled()
    for i, score in enumerate(prototype_distance(x, target).tolist()):
        mean = x[target == target[i]].double().mean(0)
        assert math.isclose(score, (x[i].double() - mean).norm().item(), rel_tol=1e-6)


def blobs(spread: float) -> torch.Tensor:
    return spread * torch.randn(600, 5) + torch.randn(8, 5)[torch.arange(600) % 8]


@pytest.mark.parametrize("spread", [0.05, 0.5])
def test_lloyd_equals_scikit_learn_from_the_same_start(spread):
    cluster = pytest.importorskip("sklearn.cluster")
    x = blobs(spread).double()
    start = x[torch.randperm(len(x))[:8]]
    theirs = cluster.KMeans(8, init=start.numpy(), n_init=1, tol=0, max_iter=1000).fit(x.numpy())
    centroid, own, distance = centroids.lloyd(x, start)
    assert math.isclose(float(distance.sum()), theirs.inertia_, rel_tol=1e-9)
    torch.testing.assert_close(centroid, torch.from_numpy(theirs.cluster_centers_))
    assert own.tolist() == theirs.labels_.tolist()


def test_the_seeds_of_k_means_are_as_good_as_those_of_scikit_learn():
    cluster = pytest.importorskip("sklearn.cluster")
    x = blobs(0.5).double()
    ours, theirs = [], []
    for seed in range(20):
        ours.append(float(centroids.lloyd(x, centroids._plus_plus(x, 8, seed))[2].sum()))
        theirs.append(cluster.KMeans(8, n_init=1, random_state=seed).fit(x.numpy()).inertia_)
    assert sorted(ours)[10] < 1.05 * sorted(theirs)[10]


def test_k_means_distance_is_the_cosine_distance_to_the_nearest_centroid():
    pairwise = pytest.importorskip("sklearn.metrics.pairwise")
    x = blobs(0.5)
    direction = x.double() / x.double().norm(dim=1, keepdim=True)
    moved = (direction - direction.mean(0)).float()
    centroid = centroids.lloyd(moved, centroids._plus_plus(moved, 8, 4))[0] + direction.mean(0)
    expected = pairwise.cosine_distances(x.double().numpy(), centroid.numpy()).min(1)
    got = k_means_distance(x, 8, seed=4)
    torch.testing.assert_close(got, torch.from_numpy(expected).float(), rtol=1e-4, atol=1e-6)
    assert torch.equal(got, k_means_distance(x, 8, seed=4))
    assert not torch.equal(got, k_means_distance(x, 8, seed=5))
    assert torch.equal(k_means_distance(2.0**100 * x, 8, seed=4), got)


def test_a_cluster_that_runs_empty_begins_again_at_the_farthest_sample():
    x = torch.tensor([[0.0], [0.1], [0.2], [5.0], [9.0]], dtype=torch.float64)
    start = torch.tensor([[0.1], [7.0], [100.0]], dtype=torch.float64)
    centroid, cluster, distance = centroids.lloyd(x, start)
    assert cluster.bincount().tolist() == [3, 1, 1]
    assert math.isclose(float(distance.sum()), 0.02, rel_tol=1e-9)
    assert sorted(centroid.flatten().tolist()) == pytest.approx([0.1, 5, 9])


def test_blocks_do_not_change_k_means_or_prototypes(monkeypatch):
    x, target = blobs(0.5), torch.arange(600) % 7
    before = k_means_distance(x, 8), prototype_distance(x, target)
    monkeypatch.setattr(clusters, "_TABLE", 100)
    torch.testing.assert_close((k_means_distance(x, 8), prototype_distance(x, target)), before)


def test_fewer_different_samples_than_clusters():
    x = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 2.0]]).repeat(4, 1)
    assert k_means_distance(x, 12).tolist() == pytest.approx([0, 1, 0] * 4, abs=1e-6)
    assert k_means_distance(torch.ones(3, 2), 1).tolist() == pytest.approx([0, 0, 0], abs=1e-6)


@pytest.mark.parametrize("clusters", [0, 6])
def test_k_means_says_how_many_clusters_there_may_be(clusters):
    with pytest.raises(ValueError, match=f"between 1 and the 5 samples, got {clusters}"):
        k_means_distance(torch.zeros(5, 2), clusters)
    with pytest.raises(TypeError, match="`seed` must be an int"):
        k_means_distance(torch.zeros(5, 2), 2, seed=0.5)


@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("block", [1, 2**22])
def test_neighbour_distance_equals_scikit_learn(monkeypatch, offset, block):
    near = pytest.importorskip("sklearn.neighbors")
    monkeypatch.setattr(neighbours, "_TABLE", block)
    x = blobs(1e-3) + offset
    exact = near.NearestNeighbors(n_neighbors=7, algorithm="kd_tree").fit(x.double().numpy())
    expected = torch.from_numpy(exact.kneighbors()[0]).mean(1).float()
    torch.testing.assert_close(neighbour_distance(x, 7), expected)


def test_neighbours_are_of_the_own_class():
    x, target = labelled()
    got = neighbour_distance(x, 5, target=target)
    for k in range(3):
        torch.testing.assert_close(got[target == k], neighbour_distance(x[target == k], 5))


def test_copies_are_neighbours():
    x = torch.tensor([[0.1], [0.1], [0.1], [5.0]])
    assert neighbour_distance(x, 2).tolist() == pytest.approx([0, 0, 0, 4.9])


def test_neighbour_distance_says_how_many_neighbours_there_are():
    x = torch.randn(5, 2)
    with pytest.raises(ValueError, match="less than the 5 samples, got 5"):
        neighbour_distance(x, 5)
    with pytest.raises(ValueError, match="less than the 2 samples of class 1, got 2"):
        neighbour_distance(x, 2, target=torch.tensor([0, 0, 0, 1, 1]))
    with pytest.raises(ValueError, match=r"at least 1 .* got 0"):
        neighbour_distance(x, 0)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Dropout(0.5))
        self.head = nn.Linear(3, 2)
        self.spare = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).mean((2, 3)))


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def test_features_of_a_layer():
    model, x = Network(), torch.randn(10, 1, 6, 5)
    loader = DataLoader(TensorDataset(x, torch.arange(10)), batch_size=4)
    model.body[2].eval()  # a mode of its own, which comes back
    modes = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    mean = features_of(model, loader, "body")
    flat = features_of(model, loader, "body", spatial="flatten")
    given = features_of(model, loader, "head", at="input")
    logits = features_of(model, iter(x.split(3)), "")
    dicts = [{"image": x}]
    head = features_of(model, dicts, "head", forward=lambda m, batch: m(batch["image"]))
    assert [module.training for module in model.modules()] == modes
    assert hooks(model) == 0
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name])
    model.eval()
    with torch.no_grad():
        body = model.body(x)
        torch.testing.assert_close(flat, body.flatten(1))
        torch.testing.assert_close(mean, body.mean((2, 3)))
        torch.testing.assert_close(given, mean)
        torch.testing.assert_close(logits, model(x))
        torch.testing.assert_close(head, model(x))
    assert not flat.requires_grad


@pytest.mark.parametrize(
    ("error", "layer", "arguments", "message"),
    [
        (ValueError, "neck", {}, "`layer` must be one of body, .*head, spare, got 'neck'"),
        (ValueError, "spare", {}, "'spare' must run exactly once in a batch, it ran 0 times"),
        (ValueError, "head", {"batches": []}, "at least one batch"),
        (ValueError, "head", {"at": "weight"}, "`at` must be one of output, input, got 'weight'"),
        (ValueError, "head", {"spatial": "max"}, "`spatial` must be one of mean, flatten"),
        (TypeError, "head", {"batches": [{"image": 1}]}, "got dict: pass `forward`"),
        (RuntimeError, "head", {"batches": [torch.zeros(2, 9, 6, 5)]}, "channels"),
    ],
)
def test_features_of_says_what_is_wrong_and_cleans_up(error, layer, arguments, message):
    model = Network().train()
    with pytest.raises(error, match=message):
        features_of(model, **{"batches": [torch.zeros(2, 1, 6, 5)], "layer": layer} | arguments)
    assert hooks(model) == 0
    assert all(module.training for module in model.modules())


def test_features_of_refuses_what_is_not_a_row_per_sample():
    model = nn.Sequential(nn.Identity())
    model[0].forward = lambda x: {"features": x}
    with pytest.raises(TypeError, match="the output of '0' must be a tensor, got dict"):
        features_of(model, [torch.zeros(2, 3)], "0")
    model[0].forward = lambda x: x.sum(0)
    with pytest.raises(ValueError, match=r"one row per sample, got \[3\] for 2 samples"):
        features_of(model, [torch.zeros(2, 3)], "0")
