"""How alike layers are: hand values, slow loops, invariances, and networks left as they were."""

from __future__ import annotations

import inspect
import json
import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_fairprune import representation
from lightning_fairprune._files import write_json
from lightning_fairprune.representation import compare_layers, linear_cka, load, save, svcca

debiased_cka = partial(linear_cka, debiased=True)
MEASURES: dict[str, Callable[..., Tensor]] = {
    "cka": linear_cka,
    "debiased": debiased_cka,
    "svcca": svcca,
    "half": partial(svcca, variance=0.5),
}
every_measure = pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)


def correlated(n: int, first: int, second: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features with unequal variances, far from 0, that share some of their directions."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, first, generator=generator, dtype=torch.float64)
    x = x * torch.logspace(0, -1, first, dtype=torch.float64) + 5
    mix = torch.randn(first, second, generator=generator, dtype=torch.float64)
    noise = torch.randn(n, second, generator=generator, dtype=torch.float64)
    return x, (x - 5) @ mix + noise - 3


def cka_by_loops(x: Tensor, y: Tensor, debiased: bool) -> float:
    """From the two Gram matrices, entry by entry."""
    n = len(x)

    def gram(rows: list[list[float]]) -> list[list[float]]:
        return [[sum(p * q for p, q in zip(a, b, strict=True)) for b in rows] for a in rows]

    def hsic(k: list[list[float]], m: list[list[float]]) -> float:
        if not debiased:

            def centred(g: list[list[float]]) -> list[list[float]]:
                means = [sum(row) / n for row in g]
                total = sum(means) / n
                return [[g[i][j] - means[i] - means[j] + total for j in range(n)] for i in range(n)]

            a, b = centred(k), centred(m)
            return sum(a[i][j] * b[i][j] for i in range(n) for j in range(n))
        # The unbiased estimator as a mean over samples that all differ, nothing is centred.
        a, b, c = 0.0, 0.0, 0.0
        for i in range(n):
            for j in set(range(n)) - {i}:
                a += k[i][j] * m[i][j] / (n * (n - 1))
                for q in set(range(n)) - {i, j}:
                    b += k[i][j] * m[i][q] / (n * (n - 1) * (n - 2))
                    for r in set(range(n)) - {i, j, q}:
                        c += k[i][j] * m[q][r] / (n * (n - 1) * (n - 2) * (n - 3))
        return a - 2 * b + c

    k, m = gram(x.tolist()), gram(y.tolist())
    return hsic(k, m) / math.sqrt(hsic(k, k) * hsic(m, m))


def svcca_by_angles(x: Tensor, y: Tensor, variance: float) -> float:
    """Cosines of the angles between the spaces that scipy finds, by QR."""
    from scipy.linalg import subspace_angles

    found = []
    for value in (x.numpy(), y.numpy()):
        u, s, _ = np.linalg.svd(value - value.mean(0), full_matrices=False)
        kept = next(
            k for k in range(1, len(s) + 1) if (s[:k] ** 2).sum() / (s**2).sum() >= variance - 1e-12
        )
        found.append(u[:, :kept])
    return float(np.cos(subspace_angles(*found)).mean())


@pytest.mark.parametrize(("n", "first", "second"), [(9, 2, 3), (9, 20, 3), (8, 30, 40), (4, 1, 1)])
@pytest.mark.parametrize("debiased", [False, True])
def test_cka_is_that_of_the_loops(n: int, first: int, second: int, debiased: bool) -> None:
    x, y = correlated(n, first, second)
    expected = cka_by_loops(x, y, debiased)
    assert float(linear_cka(x, y, debiased=debiased)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("variance", [0.5, 0.9, 0.99, 1.0])
@pytest.mark.parametrize(("first", "second"), [(3, 3), (10, 4), (1, 12)])
def test_svcca_is_the_mean_cosine_of_the_angles(first: int, second: int, variance: float) -> None:
    x, y = correlated(60, first, second)
    expected = svcca_by_angles(x, y, variance)
    assert float(svcca(x, y, variance=variance)) == pytest.approx(expected, rel=1e-9)


def test_of_one_unit_each_svcca_is_the_correlation_and_cka_its_square() -> None:
    x, y = correlated(20, 1, 1)
    r = abs(np.corrcoef(x[:, 0], y[:, 0])[0, 1])
    assert float(svcca(x, y)) == pytest.approx(r)
    assert float(linear_cka(x, y)) == pytest.approx(r**2)


def test_cka_by_hand() -> None:
    # X'X = diag(2, 2), Y'Y = 4, Y'X = (2, 2): 8 / (sqrt(8) * 4).
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    y = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])
    assert float(linear_cka(x, y)) == pytest.approx(1 / math.sqrt(2))
    assert float(linear_cka(y, x)) == pytest.approx(1 / math.sqrt(2))
    # Products less 4 / 2 * sum kl plus sum k sum l / 6, all k and l are 1: XX 8 - 8 + 16 / 6, XY the same,
    # YY 16 - 8 + 16 / 6.
    expected = (16 / 6) / math.sqrt(16 / 6 * (8 + 16 / 6))
    assert float(debiased_cka(x, y)) == pytest.approx(expected)
    # Two directions each: y lies in the plane of x.
    assert float(svcca(x, y)) == pytest.approx(1.0)
    wide = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.1], [0.0, -0.1]])
    # The first direction alone has 99 %; its correlation with y is 2 / sqrt(2 * 4).
    assert float(svcca(wide, y, variance=0.98)) == pytest.approx(1 / math.sqrt(2))
    assert float(svcca(wide, y, variance=1.0)) == pytest.approx(1.0)


def test_centred_features_of_two_samples_are_one_direction() -> None:
    x = torch.tensor([[1.0, 2.0, 3.0], [0.0, 1.0, 5.0]])
    assert float(linear_cka(x, torch.tensor([[7.0], [9.0]]))) == pytest.approx(1.0)


@every_measure
@examples(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(20, 40),
    first=st.integers(1, 8),
    second=st.integers(1, 8),
    factor=st.floats(1e-3, 1e3) | st.floats(-1e3, -1e-3),
)
def test_rotations_factors_and_shifts_change_nothing(
    measure: Any, seed: int, n: int, first: int, second: int, factor: float
) -> None:
    x, y = correlated(n, first, second, seed)
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(first, first, generator=generator, dtype=torch.float64))[0]
    value = float(measure(x, y))
    assert float(measure(factor * x @ turn + 7, y)) == pytest.approx(value, rel=1e-6, abs=1e-9)
    assert float(measure(y, x)) == pytest.approx(value, rel=1e-6, abs=1e-9)
    assert float(measure(x, factor * x @ turn)) == pytest.approx(1.0)
    order = torch.randperm(n, generator=generator)
    assert float(measure(x[order], y[order])) == pytest.approx(value, rel=1e-6, abs=1e-9)
    assert -1 <= value <= 1


def test_only_svcca_looks_away_from_how_much_directions_vary() -> None:
    x, _ = correlated(50, 4, 1)
    stretched = x * torch.tensor([1.0, 30.0, 1.0, 1.0]).double()
    assert float(svcca(x, stretched, variance=1.0)) == pytest.approx(1.0)
    assert float(linear_cka(x, stretched)) < 0.5


def test_of_few_samples_noise_looks_alike_unless_corrected() -> None:
    generator = torch.Generator().manual_seed(0)
    pairs = torch.randn(40, 2, 30, 60, generator=generator)
    plain = torch.stack([linear_cka(x, y) for x, y in pairs])
    corrected = torch.stack([debiased_cka(x, y) for x, y in pairs])
    assert float(plain.mean()) == pytest.approx(60 / (30 + 60), abs=0.02)
    assert abs(float(corrected.mean())) < 0.03
    assert bool((corrected < 0).any())
    few = torch.randn(20, 2, 500, 20, generator=generator)
    found = torch.stack([svcca(x, y) for x, y in few]).mean()
    assert float(found) == pytest.approx(0.85 * math.sqrt(20 / 500), rel=0.1)


@every_measure
def test_constant_features_have_no_value(measure: Any) -> None:
    x, _ = correlated(10, 2, 1)
    constant = torch.full((10, 3), 0.1)
    assert math.isnan(float(measure(x, constant)))
    assert math.isnan(float(measure(constant, x)))
    assert math.isnan(float(measure(constant, constant)))


@every_measure
def test_positions_of_feature_maps_are_rows_and_a_result_is_a_float64_scalar(measure: Any) -> None:
    maps = torch.randn(6, 3, 4, 5)
    other = torch.randn(6, 2, 4, 5) + maps[:, :2]
    rows = torch.stack([maps[i, :, h, w] for i in range(6) for h in range(4) for w in range(5)])
    both = torch.stack([other[i, :, h, w] for i in range(6) for h in range(4) for w in range(5)])
    value = measure(maps, other)
    assert float(value) == pytest.approx(float(measure(rows, both)))
    assert value.dtype == measure(maps, other.half()).dtype == torch.float64
    assert value.shape == ()


def test_what_the_published_tool_confuses_cannot_be_confused_here() -> None:
    for measure in (linear_cka, svcca):
        names = list(inspect.signature(measure).parameters.values())
        assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in names[2:])
    with pytest.raises(TypeError, match="positional"):
        svcca(torch.ones(9, 1), torch.ones(9, 1), 0.98)  # type: ignore[misc]


@pytest.mark.parametrize("measure", [linear_cka, svcca])
def test_features_must_be_features(measure: Any) -> None:
    good = torch.rand(5, 2)
    with pytest.raises(ValueError, match=r"`y` must be floating point features .* shape \[5\]"):
        measure(good, torch.rand(5))
    with pytest.raises(ValueError, match=r"`x` must be floating point features .* torch.int64"):
        measure(torch.ones(5, 2, dtype=torch.int64), good)
    with pytest.raises(ValueError, match=r"`x` must be finite"):
        measure(good * math.nan, good)
    with pytest.raises(ValueError, match=r"same rows, .* got 5 and 4"):
        measure(good, good[:4])
    with pytest.raises(ValueError, match=r"at least 2 rows, got 1"):
        measure(good[:1], good[:1])
    with pytest.raises(ValueError, match=r"`x` must have at least one unit"):
        measure(good[:, :0], good)
    with pytest.raises(ValueError, match=r"at least 4 rows, got 3"):
        linear_cka(good[:3], good[:3], debiased=True)


@pytest.mark.parametrize("variance", [0.0, 1.01, math.nan])
def test_variance_must_be_a_fraction(variance: float) -> None:
    with pytest.raises(ValueError, match=r"`variance` must be in \(0, 1\], got"):
        svcca(torch.rand(9, 1), torch.rand(9, 1), variance=variance)
    with pytest.raises(ValueError, match=r"`variance` must be in \(0, 1\], got"):
        compare_layers(net(), net(), data(), measure=partial(svcca, variance=variance))


def test_svcca_needs_more_rows_than_directions() -> None:
    x, y = torch.rand(9, 5), torch.rand(9, 4)
    with pytest.raises(ValueError, match=r"than the 5 \+ 4 directions .* got 9: give more samples"):
        svcca(x, y, variance=1.0)
    svcca(x, y[:, :3], variance=1.0)


def net(width: int = 4, seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, width, 3),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Dropout(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(4 * width, 3),
        )


def data(n: int = 40, size: int = 8) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 1, 8, 8, generator=generator)
    return [(part, torch.zeros(len(part))) for part in x.split(size)]


@every_measure
@pytest.mark.parametrize("size", [1, 7, 40])
def test_batches_give_what_all_samples_at_once_do(measure: Any, size: int) -> None:
    dense, pruned = net(), net(width=5, seed=1)
    found = compare_layers(dense, pruned, data(size=size), measure=measure)
    assert list(found) == ["0", "6"]
    x = data(size=40)[0][0]
    dense.eval(), pruned.eval()
    for name, end in (("0", 1), ("6", 7)):
        with torch.no_grad():
            expected = float(measure(dense[:end](x), pruned[:end](x)))
        assert found[name] == pytest.approx(expected, rel=1e-6), name


@every_measure
def test_a_mean_far_from_0_costs_no_digits(measure: Any) -> None:
    x, y = correlated(50, 3, 4)
    expected = float(measure(x, y))

    class Fixed(nn.Module):
        def __init__(self, columns: slice) -> None:
            super().__init__()
            self.columns, self.layer = columns, nn.Identity()

        def forward(self, z: Tensor) -> Tensor:
            return self.layer(z[:, self.columns])

    batches = (torch.cat([x, y], 1) + 1e6).split(10)
    found = compare_layers(Fixed(slice(3)), Fixed(slice(3, 7)), batches, ["layer"], measure=measure)
    assert found["layer"] == pytest.approx(expected, rel=1e-5)


def noting() -> tuple[list[tuple[Tensor, Tensor]], Any]:
    """A list, and a measure that puts what it is given into it."""
    seen = []

    def measure(x: Tensor, y: Tensor) -> Tensor:
        seen.append((x, y))
        return torch.tensor(0.5)

    return seen, measure


def test_any_other_measure_gets_all_rows() -> None:
    seen, measure = noting()
    assert compare_layers(net(), net(), data(), measure=measure) == {"0": 0.5, "6": 0.5}
    assert [(x.shape, y.shape) for x, y in seen] == [((40 * 36, 4),) * 2, ((40, 3),) * 2]


def test_of_large_maps_the_same_places_are_looked_at() -> None:
    seen, measure = noting()
    maps = torch.arange(2 * 25.0).view(2, 1, 5, 5)
    layer = nn.Sequential(nn.Identity())
    compare_layers(layer, layer, [maps], ["0"], measure=measure, positions=4)
    for rows in seen[0]:
        assert rows.flatten().tolist() == [0, 7, 16, 23, 25, 32, 41, 48]


@pytest.mark.parametrize(("height", "width"), [(32, 32), (7, 7), (112, 112), (30, 50), (1, 2)])
def test_the_places_are_spread_over_columns_and_rows(height: int, width: int) -> None:
    from lightning_fairprune.representation._layers import _spread

    total = height * width
    for count in {1, total // 2, min(total - 1, 256)}:
        places = _spread(count, total)
        assert len(places.unique()) == count
        assert 0 <= int(places.min()) <= int(places.max()) < total
        columns = torch.bincount(places % width, minlength=width)
        assert int(columns.max() - columns.min()) <= 1
        thirds = torch.histc(places.double() / total, 3, 0, 1)
        assert float(thirds.max() - thirds.min()) <= max(3, count // 20)


def test_some_places_tell_what_all_would() -> None:
    # Padding makes the edge of a map another thing than its middle.
    dense, pruned = (nn.Sequential(nn.Conv2d(1, 6, 5, padding=2)) for _ in range(2))
    images = [nn.functional.interpolate(torch.randn(60, 1, 6, 6), size=(32, 32)) + 1]
    every = compare_layers(dense, pruned, images, positions=1024)["0"]
    assert compare_layers(dense, pruned, images)["0"] == pytest.approx(every, abs=0.01)
    found = compare_layers(dense, pruned, images, positions=64)["0"]
    assert found == pytest.approx(every, abs=0.03)


def test_equal_networks_are_alike_and_pruned_ones_less() -> None:
    dense, pruned = net(), net()
    with torch.no_grad():
        weight = pruned[0].weight
        weight[weight.abs() < weight.abs().median()] = 0
        pruned[6].weight.zero_()
    assert compare_layers(dense, dense, data()) == pytest.approx({"0": 1.0, "6": 1.0})
    found = compare_layers(dense, pruned, data())
    assert 0.1 < found["0"] < 0.999
    assert math.isnan(found["6"])


def test_tokens_are_rows_of_linear_layers() -> None:
    seen, measure = noting()
    model = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Conv1d(5, 3, 1))
    compare_layers(model, model, [torch.randn(2, 5, 4)], ["0", "1", "2"], measure=measure)
    assert [x.shape for x, _ in seen] == [(10, 6), (10, 6), (12, 3)]
    images = nn.Sequential(nn.Linear(4, 6))
    compare_layers(images, images, [torch.randn(2, 5, 5, 4)], measure=measure)
    assert seen[-1][0].shape == (50, 6)


def test_layers_that_do_not_run_are_left_out_unless_they_are_named() -> None:
    class Spare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.spare = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(self.used(x))

    seen, measure = noting()
    batches = [torch.randn(3, 2)]
    assert list(compare_layers(Spare(), Spare(), batches, measure=measure)) == ["used"]
    assert [len(x) for x, _ in seen] == [6]  # it runs twice
    with pytest.raises(ValueError, match=r"`layers` must run in the networks, 'spare' did not"):
        compare_layers(Spare(), Spare(), batches, ["used", "spare"])


def test_forward_runs_networks_on_other_batches() -> None:
    batches = [{"image": x} for x, _ in data()]
    found = compare_layers(net(), net(seed=1), batches, forward=lambda m, batch: m(batch["image"]))
    assert found == compare_layers(net(), net(seed=1), data())
    with pytest.raises(TypeError, match=r"got dict: pass `forward`"):
        compare_layers(net(), net(), batches)


def test_errors_name_the_layer() -> None:
    with pytest.raises(ValueError, match=r"`positions` must be at least 1, got 0"):
        compare_layers(net(), net(), data(), positions=0)
    with pytest.raises(ValueError, match=r"got '9', and `dense` has 0, 1, 2"):
        compare_layers(net(), net(), data(), ["9"])
    with pytest.raises(ValueError, match=r"got '6', and `pruned` has 0, 1, 2"):
        compare_layers(net(), net()[:6], data(), ["6"])
    with pytest.raises(ValueError, match=r"at least one layer, got none"):
        compare_layers(net(), net(), data(), [])
    with pytest.raises(ValueError, match=r"at least one Conv or Linear layer, found none"):
        compare_layers(net(), nn.ReLU(), data())
    with pytest.raises(ValueError, match=r"at least one batch, got none"):
        compare_layers(net(), net(), [])
    with pytest.raises(
        ValueError, match=r"layer '6' cannot be compared: .* at least 2 rows, got 1"
    ):
        compare_layers(net(), net(), [torch.randn(1, 1, 8, 8)])
    with pytest.raises(ValueError, match=r"layer '0' cannot be compared: its features must be fin"):
        compare_layers(net(), net(), [torch.randn(9, 1, 8, 8) * math.inf])
    with pytest.raises(ValueError, match=r"layer '0' must return floating point .* shape \[4\]"):
        compare_layers(*[nn.Sequential(nn.Flatten(0))] * 2, [torch.randn(2, 2)], ["0"])
    with pytest.raises(TypeError, match=r"layer '0' must return a tensor, got tuple"):
        compare_layers(*[nn.Sequential(nn.LSTM(2, 2))] * 2, [torch.randn(2, 2)], ["0"])
    other = nn.Sequential(nn.Conv2d(1, 4, 4))
    with pytest.raises(ValueError, match=r"layer '0' .* in both networks, got 72 and 50 rows"):
        compare_layers(net()[:1], other, [torch.randn(2, 1, 8, 8)])
    two, three = (nn.Sequential(nn.Linear(2, k), nn.Linear(k, 2)) for k in (2, 3))
    batches = [torch.randn(9, 2)]
    with pytest.raises(ValueError, match=r"layer '1' must run in both .* in the dense one only"):
        compare_layers(two, three, batches, forward=lambda m, x: (m if m is two else m[0])(x))
    with pytest.raises(ValueError, match=r"layer '6' .* than the \d \+ \d directions"):
        compare_layers(net(), net(seed=1), data(5), measure=svcca)
    with pytest.raises(ValueError, match=r"layer '0' cannot .* at least 4 rows, got 3"):
        compare_layers(two, two, [torch.randn(3, 2)], measure=debiased_cka)


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    values = {"a.b": 0.5, "<i>": math.nan, "c": -0.25, "d": 1.0}
    run = tmp_path / "version_0"
    save(run, values, measure="debiased CKA")
    assert [p.name for p in (run / "fairprune").iterdir()] == ["similarity.json"]
    for path in (run, run / "fairprune", run / "fairprune" / "similarity.json"):
        found = load(path)
        assert found.measure == "debiased CKA"
        assert list(found.layers) == list(values)
        assert found.layers == pytest.approx(values, nan_ok=True)
    save(run / "fairprune", {"x": 1.0})
    assert load(run) == ({"x": 1.0}, "linear CKA")
    save(str(tmp_path / "deep" / "mine.json"), {"x": 0.0})
    assert load(tmp_path / "deep" / "mine.json").layers == {"x": 0.0}
    json.loads((run / "fairprune" / "similarity.json").read_text(), parse_constant=pytest.fail)


def test_wrong_files_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"at least one layer"):
        save(tmp_path, {})
    good = {"measure": "CKA", "layers": {"a": 1.0}}
    file = tmp_path / "similarity.json"
    for content, match in (
        ({**good, "layers": [1]}, "cannot be loaded: it is damaged"),
        ({**good, "layers": {"a": "b"}}, "cannot be loaded: it is damaged"),
        ({}, "it is damaged"),
        ({**good, "layers": {"a": 7}}, r"damaged .*values in \[-1, 1\]"),
    ):
        write_json(file, "representation", content)
        with pytest.raises(ValueError, match=match) as caught:
            load(tmp_path)
        assert re.search("similarity.json", str(caught.value))


def test_every_public_name_has_an_example() -> None:
    for name in representation.__all__:
        assert ">>>" in (inspect.getdoc(getattr(representation, name)) or ""), name
