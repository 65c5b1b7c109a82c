"""What holds for masks and schedules whatever the layers, saliencies and sparsities."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from test_masks import RULES, SCHEDULES
from torch import Tensor

from lightning_fairprune import masks

names = st.sampled_from(sorted(RULES))
shapes = st.lists(
    st.lists(st.integers(0, 6), min_size=0, max_size=3).map(tuple), min_size=1, max_size=4
).filter(lambda found: any(math.prod(shape) for shape in found))


@dataclass
class Problem:
    saliency: dict[str, Tensor]
    floor: int
    sparsities: tuple[float, ...]  # ascending, possible with the floor

    @property
    def total(self) -> int:
        return sum(value.numel() for value in self.saliency.values())


@st.composite
def problems(draw: st.DrawFn, *, distinct: bool = False, floor: bool = True) -> Problem:
    found = draw(shapes)
    total = sum(map(math.prod, found))
    if distinct:
        values = [v + 1.0 for v in draw(st.permutations(range(total)))]
    else:
        one = st.one_of(st.integers(0, 2).map(float), st.floats(0, 1e6, width=32))
        values = draw(st.lists(one, min_size=total, max_size=total))
    parts = torch.tensor(values, dtype=torch.float32).split([math.prod(s) for s in found])
    saliency = {
        f"layer{i}": p.reshape(s) for i, (p, s) in enumerate(zip(parts, found, strict=True))
    }
    least = draw(st.integers(0, 3)) if floor else 0
    needed = sum(min(least, math.prod(s)) for s in found)
    most = total - max(needed, 1)
    removed = sorted(draw(st.integers(0, most)) for _ in range(3))
    return Problem(saliency, least, tuple(r / total for r in removed))


def removed(found: dict[str, Tensor]) -> int:
    return sum(int((~mask).sum()) for mask in found.values())


@given(problems(), names)
def test_exact_floored_and_nested(p: Problem, name: str) -> None:
    before_all = {layer: values.clone() for layer, values in p.saliency.items()}
    before: dict[str, Tensor] | None = None
    for sparsity in p.sparsities:
        found = RULES[name](p.saliency, sparsity, floor=p.floor, keep=before)
        assert found.keys() == p.saliency.keys()
        assert removed(found) == round(sparsity * p.total)
        for layer, mask in found.items():
            assert mask.dtype == torch.bool
            assert mask.shape == p.saliency[layer].shape
            assert int(mask.sum()) >= min(p.floor, mask.numel())
            assert before is None or not bool((mask & ~before[layer]).any())
        assert masks.sparsity_of(found).total == removed(found) / p.total
        before = found
    assert all(torch.equal(before_all[layer], values) for layer, values in p.saliency.items())


@given(problems(floor=False), names)
def test_step_by_step_is_the_same_as_at_once(p: Problem, name: str) -> None:
    """As long as the saliency stays: nothing in a rule depends on the way."""
    first = RULES[name](p.saliency, p.sparsities[0])
    again = RULES[name](p.saliency, p.sparsities[2], keep=first)
    at_once = RULES[name](p.saliency, p.sparsities[2])
    assert all(torch.equal(again[layer], at_once[layer]) for layer in at_once)


@given(problems(), names)
def test_what_goes_is_below_what_stays(p: Problem, name: str) -> None:
    """In every layer, of equal saliencies the first."""
    for layer, mask in RULES[name](p.saliency, p.sparsities[1], floor=p.floor).items():
        values = p.saliency[layer].flatten().tolist()
        ranked = sorted(range(len(values)), key=lambda i: (values[i], i))
        gone = (~mask).flatten().nonzero().flatten().tolist()
        if name == "lamp":  # whose scores of different saliencies may round to the same
            assert [values[i] for i in ranked[: len(gone)]] == sorted(values[i] for i in gone)
        else:
            assert sorted(ranked[: len(gone)]) == gone


@given(problems(distinct=True), names, st.randoms(use_true_random=False))
def test_the_order_of_the_weights_does_not_matter(p: Problem, name: str, random: Any) -> None:
    found = RULES[name](p.saliency, p.sparsities[1], floor=p.floor)
    orders = {
        layer: torch.tensor(random.sample(range(v.numel()), v.numel()), dtype=torch.int64)
        for layer, v in p.saliency.items()
    }
    mixed = {layer: v.flatten()[orders[layer]].view_as(v) for layer, v in p.saliency.items()}
    again = RULES[name](mixed, p.sparsities[1], floor=p.floor)
    for layer, mask in found.items():
        assert torch.equal(again[layer].flatten(), mask.flatten()[orders[layer]])


@given(problems(), st.sampled_from(["globally", "per_layer", "erk"]))
def test_only_the_order_of_the_saliencies_counts(p: Problem, name: str) -> None:
    found = RULES[name](p.saliency, p.sparsities[1], floor=p.floor)
    ranks = torch.cat([v.flatten() for v in p.saliency.values()]).unique()
    other = {layer: torch.bucketize(v, ranks).double() - 7 for layer, v in p.saliency.items()}
    again = RULES[name](other, p.sparsities[1], floor=p.floor)
    assert all(torch.equal(again[layer], found[layer]) for layer in found)


# --- schedules ------------------------------------------------------------------------------------


@given(
    st.sampled_from(sorted(SCHEDULES)),
    st.floats(0, 1, exclude_max=True),
    st.floats(0, 1),
    st.integers(1, 40),
)
def test_schedules_rise_to_the_target(name: str, sparsity: float, share: float, steps: int) -> None:
    initial = share * sparsity
    found = SCHEDULES[name](sparsity, steps, initial=initial)
    assert len(found) == steps
    assert found[-1] == sparsity
    assert list(found) == sorted(found)
    assert all(initial <= s <= sparsity for s in found)


@given(st.floats(0, 0.999), st.floats(0, 0.999), st.integers(1, 30))
def test_schedules_have_their_closed_forms(one: float, other: float, steps: int) -> None:
    first, last = sorted([one, other])
    left = [(1 - first) * ((1 - last) / (1 - first)) ** (i / steps) for i in range(1, steps + 1)]
    slow = {
        "one_shot": [last] * steps,
        "geometric": [1 - v for v in left],
        "cubic": [last - (last - first) * (1 - i / steps) ** 3 for i in range(1, steps + 1)],
    }
    for name, schedule in SCHEDULES.items():
        found = torch.tensor(schedule(last, steps, initial=first), dtype=torch.float64)
        torch.testing.assert_close(found, torch.tensor(slow[name], dtype=torch.float64))
