"""Masks: exact counts, ties by index, nothing returns; rules against loops; schedules that end on target."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_fairprune import masks
from lightning_fairprune.masks import schedules

OTHERS = {"Sparsity", "apply", "schedules", "sparsity_of"}
RULES = {name: getattr(masks, name) for name in masks.__all__ if name not in OTHERS}
SCHEDULES = {name: getattr(schedules, name) for name in schedules.__all__}
SHAPES = {"conv": (8, 3, 3, 3), "wide": (20, 16), "thin": (10, 4), "one": (1, 1)}
TOTAL = sum(math.prod(shape) for shape in SHAPES.values())


def saliencies(seed: int = 0, levels: int | None = None) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for k, (name, shape) in enumerate(SHAPES.items()):
        values = torch.rand(shape, generator=generator) * 10.0 ** (k - 2)
        # With few levels nearly everything is tied.
        found[name] = (
            values if levels is None else torch.randint(levels, shape, generator=generator).float()
        )
    return found


def kept(found: dict[str, Tensor]) -> int:
    return sum(int(mask.sum()) for mask in found.values())


def slow_globally(
    saliency: dict[str, Tensor], sparsity: float, floor: int, keep: dict[str, Tensor]
) -> dict[str, Tensor]:
    flat = [
        (float(value), k, i, name)
        for k, (name, values) in enumerate(saliency.items())
        for i, value in enumerate(values.flatten().tolist())
    ]
    result = {name: mask.clone().flatten() for name, mask in keep.items()}
    todo = round(sparsity * len(flat)) - sum(int((~m).sum()) for m in result.values())
    for _, _, i, name in sorted(flat):
        if todo and result[name][i] and int(result[name].sum()) > floor:
            result[name][i] = False
            todo -= 1
    return {name: mask.view(SHAPES[name]) for name, mask in result.items()}


def slow_lamp(saliency: dict[str, Tensor], keep: dict[str, Tensor]) -> dict[str, Tensor]:
    scores = {}
    for name, values in saliency.items():
        left = [
            (v, i)
            for i, (v, k) in enumerate(
                zip(values.flatten().tolist(), keep[name].flatten().tolist(), strict=True)
            )
            if k
        ]
        flat = [0.0] * values.numel()
        for v, i in left:
            flat[i] = v * v / sum(u * u for u, j in left if (u, j) >= (v, i)) if v else 0.0
        scores[name] = torch.tensor(flat, dtype=torch.float64).view(values.shape)
    return scores


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(name: str, dtype: torch.dtype) -> None:
    saliency = {key: value.to(dtype) for key, value in saliencies().items()}
    assert kept(RULES[name](saliency, 0.7)) == TOTAL - round(0.7 * TOTAL)


@pytest.mark.parametrize("name", RULES)
def test_earlier_masks_hold_whatever_the_saliency_says_now(name: str) -> None:
    first = RULES[name](saliencies(0), 0.5)
    now = RULES[name](saliencies(1), 0.8, keep=first)
    assert kept(now) == TOTAL - round(0.8 * TOTAL)
    assert all(not (now[key] & ~first[key]).any() for key in now)


def test_minus_infinity_does_not_bring_a_removed_weight_back() -> None:
    saliency = {"a": torch.tensor([-torch.inf, -torch.inf, 1.0, 2.0])}
    keep = {"a": torch.tensor([True, False, True, True])}
    assert masks.globally(saliency, 0.25, keep=keep)["a"].tolist() == [True, False, True, True]
    assert masks.globally(saliency, 0.5, keep=keep)["a"].tolist() == [False, False, True, True]


def test_a_layer_without_weights() -> None:
    saliency = {"a": torch.tensor([1.0, 2.0]), "none": torch.empty(0)}
    for rule in RULES.values():
        found = rule(saliency, 0.5, floor=1)
        assert found["a"].tolist() == [False, True]
        assert found["none"].shape == (0,)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    levels=st.sampled_from([None, 2, 5]),
    sparsity=st.floats(0.5, 0.97),
    floor=st.integers(0, 4),
)
def test_globally_and_lamp_against_a_loop(
    seed: int, levels: int | None, sparsity: float, floor: int
) -> None:
    saliency = saliencies(seed, levels)
    keep = masks.globally(saliencies(seed + 1), 0.4, floor=4)
    found = masks.globally(saliency, sparsity, floor=floor, keep=keep)
    slow = slow_globally(saliency, sparsity, floor, keep)
    assert all(torch.equal(found[name], slow[name]) for name in saliency)
    found = masks.lamp(saliency, sparsity, floor=floor, keep=keep)
    slow = slow_globally(slow_lamp(saliency, keep), sparsity, floor, keep)
    # Sums in another order may swap near-ties between layers.
    off = sum(int((found[name] != slow[name]).sum()) for name in saliency)
    assert off <= (2 if levels is None else 8)


def test_lamp_empties_no_layer_where_one_ranking_does() -> None:
    saliency = {"small": torch.rand(50) * 1e-3, "large": torch.rand(50) + 1}
    assert masks.sparsity_of(masks.globally(saliency, 0.9)).highest == 1
    assert masks.sparsity_of(masks.lamp(saliency, 0.9)).highest < 1
    assert masks.sparsity_of(masks.globally(saliency, 0.9, floor=1)).highest == 49 / 50


@pytest.mark.parametrize("rule", [masks.per_layer, masks.erk])
@pytest.mark.parametrize("sizes", [(20, 1, 4, 4, 8, 3), (1, 1, 1), (6, 2, 2, 10, 30)])
def test_layers_with_equal_claims_never_shrink(rule: Any, sizes: tuple[int, ...]) -> None:
    saliency = {f"layer{k}": torch.arange(float(size)) for k, size in enumerate(sizes)}
    before = torch.zeros(len(sizes))
    for count in range(1, sum(sizes) + 1):
        found = rule(saliency, 1 - count / sum(sizes))
        now = torch.tensor([int(mask.sum()) for mask in found.values()])
        assert int(now.sum()) == count
        assert bool((now >= before).all())
        before = now


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.8, 0.93])
def test_per_layer_is_uniform_within_one_weight(sparsity: float) -> None:
    for mask in masks.per_layer(saliencies(), sparsity).values():
        assert abs(int((~mask).sum()) - sparsity * mask.numel()) <= 1


def test_erk_densities_are_those_of_the_paper() -> None:
    shapes = {"conv1": (64, 3, 3, 3), "conv2": (128, 64, 3, 3), "fc": (10, 128)}
    saliency = {name: torch.rand(shape) for name, shape in shapes.items()}
    found = masks.erk(saliency, 0.9)
    total = sum(math.prod(s) for s in shapes.values())
    wanted = round(0.1 * total)
    # Small layers first: they are full where epsilon * sum / product is above 1.
    full: set[str] = set()
    while True:
        rest = wanted - sum(math.prod(shapes[n]) for n in full)
        epsilon = rest / sum(sum(shapes[n]) for n in shapes if n not in full)
        more = {
            n for n in shapes if n not in full and epsilon * sum(shapes[n]) > math.prod(shapes[n])
        }
        if not more:
            break
        full |= more
    assert full  # the case is worth testing
    for name, shape in shapes.items():
        size = math.prod(shape)
        expected = size if name in full else epsilon * sum(shape)
        assert int(found[name].sum()) == pytest.approx(expected, abs=1)


def test_rules_agree_where_there_is_one_layer() -> None:
    saliency = {"a": torch.rand(7, 9)}
    found = [rule(saliency, 0.6)["a"] for rule in RULES.values()]
    assert all(torch.equal(found[0], other) for other in found)


def test_sparsity_of() -> None:
    found = masks.sparsity_of(
        {"a": torch.tensor([[True, False]]), "b": torch.ones(6, dtype=torch.bool)}
    )
    assert found.total == 1 / 8
    assert (found.lowest, found.highest) == (0.0, 0.5)
    assert math.isnan(masks.sparsity_of({}).total)


def test_apply_zeroes_and_touches_nothing_else() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = masks.globally({"0.weight": torch.rand(3, 4), "2.weight": torch.rand(2, 3)}, 0.5)
    masks.apply(model, found)
    for name, value in model.state_dict().items():
        expected = before[name]
        if name in found:
            expected = torch.where(found[name], expected, 0.0)
        assert torch.equal(value, expected)
    assert all(isinstance(p, nn.Parameter) and p.is_leaf for p in model.parameters())
    for wrong in ({"1.nothing": torch.ones(3) > 0}, {"0.weight": torch.ones(3) > 0}):
        with pytest.raises(ValueError, match=r"`masks` has `.*` .*, the model has "):
            masks.apply(model, wrong)


GOOD = {"a": torch.tensor([1.0, 2.0, 3.0, 4.0])}


HOLE, HALF = torch.tensor([1.0, torch.nan]), torch.tensor([True, False, False, True])
EVERY = torch.ones(4, dtype=torch.bool)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize(
    ("sparsity", "options", "match"),
    [
        (-0.1, {}, r"`sparsity` must be in \[0, 1\), got -0.1"),
        (True, {}, "`sparsity` must be in"),
        (0.5, {"floor": -1}, "`floor` must be 0 or more"),
        (0.75, {"floor": 2}, "`floor`=2 keeps 2 weights in 1 layers"),
        (0.5, {"saliency": {}}, "at least one weight"),
        (0.5, {"saliency": {"a": HOLE}}, "the saliency of `a` is NaN for 1 of 2 weights"),
        (0.25, {"keep": {"a": HALF}}, "leaves 3 of 4 weights, but `keep` has only 2 left"),
        (0.5, {"keep": {"b": EVERY}}, r"`keep` must have the names of `saliency`.*\['a', 'b'\]"),
        (0.5, {"keep": {"a": EVERY[1:]}}, r"`keep` of `a` must be bool \[4\]"),
        (0.5, {"keep": {"a": EVERY.float()}}, "must be bool"),
    ],
)
def test_refused(name: str, sparsity: float, options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        RULES[name](**{"saliency": GOOD, "sparsity": sparsity} | options)


@pytest.mark.parametrize("name", RULES)
def test_a_saliency_is_a_float_tensor(name: str) -> None:
    with pytest.raises(TypeError, match="`a` must be a float tensor"):
        RULES[name]({"a": torch.tensor([1, 2])}, 0.5)


@pytest.mark.parametrize("value", [-1.0, torch.inf])
def test_lamp_refuses_what_it_cannot_square(value: float) -> None:
    with pytest.raises(ValueError, match="`lamp` squares the saliency"):
        masks.lamp({"a": torch.tensor([value, 1.0])}, 0.5)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(
    ("arguments", "initial", "match"),
    [
        ((1.0, 2), 0.0, "`sparsity` must be in"),
        ((0.5, 0), 0.0, "`steps` must be at least 1"),
        ((0.5, 2), 0.6, r"`initial` must be in \[0, 0.5\]"),
    ],
)
def test_schedules_refuse(name: str, arguments: Any, initial: float, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        SCHEDULES[name](*arguments, initial=initial)


def test_rules_share_a_signature() -> None:
    signatures = {str(inspect.signature(rule)) for rule in RULES.values()}
    assert len(signatures) == 1
    assert len({str(inspect.signature(schedule)) for schedule in SCHEDULES.values()}) == 1
