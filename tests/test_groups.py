"""groups.discover and groups.assign."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_fairprune import Dynamics
from lightning_fairprune.groups import assign, discover

SHIFT = 6.0


def seen(target: Tensor, badly: Tensor) -> Dynamics:
    """Three epochs in which the samples of `badly` are wrong and have a long error."""
    generator = torch.Generator().manual_seed(5)
    noise = 0.1 * torch.rand(3, len(target), generator=generator)
    return Dynamics(
        target, {"el2n": noise + 1.2 * badly, "correct": (~badly).expand(3, -1).clone()}
    )


def hidden(n: int = 400, few: int = 30) -> tuple[Dynamics, Tensor, Tensor]:
    """Two classes in 8 features; in class 1 `few` samples have the background of class 0 and are learnt badly."""
    generator = torch.Generator().manual_seed(4)
    target = torch.arange(n) % 2
    badly = torch.zeros(n, dtype=torch.bool)
    badly[1 : 2 * few : 2] = True
    features = torch.randn(n, 8, generator=generator)
    features[:, :4] += SHIFT * (target.bool() & ~badly)[:, None]
    return seen(target, badly), features, target + badly


def test_a_value_checked_on_paper():
    # Standardised, the features of class 1 are -1, -1, 1, 1 and its EL2N too: the silhouette is 1.
    target = torch.tensor([1, 1, -1, 1, 1, 4])
    right = torch.tensor([True, True, True, False, False, True])
    dynamics = Dynamics(target, {"el2n": 1.0 - right.float()[None], "correct": right[None]})
    features = torch.tensor([[2.0], [2.0], [7.0], [5.0], [5.0], [0.0]])
    assert discover(dynamics, features, min_size=2, separation=1.0, gap=1.0).tolist() == [
        0, 0, -1, 1, 1, 2,
    ]  # fmt: skip
    assert discover(dynamics, features, min_size=3).tolist() == [0, 0, -1, 0, 0, 1]
    assert discover(dynamics, features, most=1, min_size=2).tolist() == [0, 0, -1, 0, 0, 1]


def test_the_hidden_group_is_found():
    dynamics, features, group = hidden()
    assert torch.equal(discover(dynamics, features), group)
    assert torch.equal(discover(dynamics, features, most=4), group)


def test_no_group_where_samples_are_hard_without_a_break():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1000, 8, generator=generator)
    hard = (features[:, 0] + 1.4).clamp(0, 1.4)
    right = hard < 0.7
    dynamics = Dynamics(
        torch.zeros(1000, dtype=torch.int64), {"el2n": hard[None], "correct": right[None]}
    )
    assert discover(dynamics, features).unique().tolist() == [0]


def test_no_group_where_both_parts_are_learnt_alike():
    _, features, group = hidden()
    dynamics = seen(group.clamp(max=1), torch.zeros(len(group), dtype=torch.bool))
    assert torch.equal(discover(dynamics, features), group.clamp(max=1))


@pytest.mark.parametrize("k", [2, 3])
def test_clusters_and_silhouette_are_those_of_scikit_learn(k):
    cluster = pytest.importorskip("sklearn.cluster")
    generator = torch.Generator().manual_seed(k)
    part = torch.arange(150) % k
    features = torch.randn(150, 5, generator=generator) + 4 * part[:, None]
    hard = 0.4 * part + 0.1 * torch.rand(150, generator=generator)
    right = torch.rand(4, 150, generator=generator) > 0.45 * part
    target = torch.zeros(150, dtype=torch.int64)
    dynamics = Dynamics(target, {"el2n": hard.expand(4, -1).clone(), "correct": right})

    x = features.double()
    x = (x - x.mean(0)) / x.std(0, unbiased=False) / 5**0.5
    h = hard.double()[:, None]
    x = torch.cat([x, (h - h.mean(0)) / h.std(0, unbiased=False)], 1)
    start = [int((x - x.mean(0)).norm(dim=1).argmin())]
    while len(start) < k:
        start.append(int(torch.cdist(x, x[start]).amin(1).argmax()))
    fitted = cluster.KMeans(k, init=x[start].numpy(), n_init=1, tol=0).fit(x.numpy())
    means = [float(right[:, fitted.labels_ == j].double().mean()) for j in range(k)]
    rank = sorted(range(k), key=lambda j: -means[j])
    expected = torch.tensor([rank.index(j) for j in fitted.labels_])
    distance = torch.from_numpy(fitted.transform(x.numpy())).sort(1).values
    each = 1 - distance[:, 0] / distance[:, 1]
    silhouette = float(torch.stack([each[expected == j].mean() for j in range(k)]).mean())

    found = discover(dynamics, features, most=k, separation=silhouette - 1e-6)
    assert torch.equal(found, expected)
    if k == 2:
        assert discover(dynamics, features, separation=silhouette + 1e-6).max() == 0


def test_outliers_do_not_hide_a_group():
    dynamics, features, group = hidden()
    features[[3, 5]] *= 30
    found = discover(dynamics, features)
    others = torch.ones(len(group), dtype=torch.bool)
    others[[3, 5]] = False
    assert torch.equal(found[others], group[others])
    assert (found[[3, 5]] >= 1).all()


def test_the_order_of_the_samples_does_not_matter():
    dynamics, features, group = hidden()
    order = torch.randperm(len(group), generator=torch.Generator().manual_seed(1))
    moved = Dynamics(dynamics.target[order], {k: v[:, order] for k, v in dynamics.signals.items()})
    assert torch.equal(discover(moved, features[order]), group[order])
    assert torch.equal(discover(moved, features[order]), discover(moved, features[order]))


def test_a_sample_that_was_never_observed_joins_by_its_features():
    dynamics, features, group = hidden()
    unseen = torch.zeros(len(group), dtype=torch.bool)
    unseen[[0, 1, 201]] = True  # of the groups 0, 2 and 1
    hole = torch.where(unseen, torch.nan, dynamics.signal("el2n"))
    less = Dynamics(
        dynamics.target,
        {"el2n": hole, "correct": dynamics.signal("correct")},
        observed=(~unseen).expand(3, -1).clone(),
    )
    assert torch.equal(discover(less, features), group)


def test_other_labels_than_those_of_the_record():
    dynamics, features, group = hidden()
    target = dynamics.target.clone()
    target[:10] = -1
    assert discover(dynamics, features, target)[:10].unique().tolist() == [-1]
    assert torch.equal(discover(dynamics, features, target)[10:], group[10:])


def test_features_that_do_not_vary():
    dynamics, _, group = hidden()
    assert torch.equal(discover(dynamics, torch.full((len(group), 3), 0.1)), group)


def test_a_class_that_was_never_observed_is_a_group():
    target = torch.tensor([0, 0, 3])
    observed = torch.tensor([[True, True, False]])
    el2n = torch.tensor([[0.1, 0.1, torch.nan]])
    dynamics = Dynamics(target, {"el2n": el2n, "correct": observed}, observed=observed)
    assert discover(dynamics, torch.rand(3, 2)).tolist() == [0, 0, 1]


def test_others_go_to_the_nearest_mean_of_their_class():
    neighbors = pytest.importorskip("sklearn.neighbors")
    _, features, group = hidden()
    generator = torch.Generator().manual_seed(9)
    others = 3 * torch.randn(500, 8, generator=generator) + SHIFT / 2
    others_target = torch.arange(500) % 2
    found = assign(features, group.clamp(max=1), group, others, others_target)
    assert torch.equal(found[others_target == 0], torch.zeros(250, dtype=torch.int64))
    own = features[group > 0].double()
    mean, deviation = own.mean(0), own.std(0, unbiased=False)
    theirs = neighbors.NearestCentroid().fit(
        ((own - mean) / deviation).numpy(), group[group > 0].numpy()
    )
    asked = (others[others_target == 1].double() - mean) / deviation
    assert found[others_target == 1].tolist() == theirs.predict(asked.numpy()).tolist()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"most": 0}, "`most` must be at least 1, got 0"),
        ({"min_size": 1}, "`min_size` must be at least 2, got 1"),
        ({"separation": 1.1}, "`separation` must be in .0, 1., got 1.1"),
        ({"gap": -0.1}, "`gap` must be in .0, 1., got -0.1"),
        ({"features": torch.zeros(3, 2)}, r"`features` must be floats \[400, D\], got torch.float32 \[3, 2\]"),
        ({"features": torch.full((400, 2), torch.nan)}, "`features` must be finite"),
        ({"target": torch.zeros(3, dtype=torch.int64)}, r"`target` must be int64 \[400\]"),
        ({"dynamics": Dynamics(torch.zeros(400, dtype=torch.int64), {})}, "'correct' was not recorded"),
    ],
)  # fmt: skip
def test_errors(change, match):
    dynamics, features, _ = hidden()
    with pytest.raises(ValueError, match=match):
        discover(**({"dynamics": dynamics, "features": features} | change))


def test_others_need_the_same_features():
    _, features, group = hidden()
    with pytest.raises(ValueError, match="must have the 8 features of the known samples, got 3"):
        assign(features, group, group, torch.zeros(1, 3), torch.zeros(1, dtype=torch.int64))
