"""What holds for ratios, intervals and tests whatever the models."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from test_statistics import slow_alpha
from torch import Tensor

from lightning_fairprune import statistics

NAN = math.nan


@st.composite
def recalls(draw: st.DrawFn) -> Tensor:
    found = draw(st.lists(st.floats(0.05, 1), min_size=2, max_size=8))
    assume(max(found) - min(found) > 1e-3)
    return torch.tensor(found, dtype=torch.float64)


# --- the intensification ratio --------------------------------------------------------------------


@given(recalls(), st.floats(-0.9, 3), st.floats(0.05, 0.95))
def test_closed_form(before: Tensor, alpha: float, accuracy: float) -> None:
    """Balances made alpha times as wide around another accuracy have the ratio alpha."""
    balance = before / before.mean() - 1
    after = accuracy * (1 + alpha * balance)
    assume(bool(((after >= 0) & (after <= 1)).all()))
    assert float(statistics.intensification_ratio(before, after)) == pytest.approx(alpha, abs=1e-9)
    slope, r2 = statistics.intensification_line(before[None], after[None])
    assert slope == pytest.approx(alpha, abs=1e-9)
    assert math.isnan(r2) or r2 == pytest.approx(1) or abs(alpha) < 1e-6


@given(recalls(), st.data())
def test_invariances(before: Tensor, data: st.DataObject) -> None:
    k = len(before)
    after = torch.tensor(
        data.draw(st.lists(st.floats(0.05, 1), min_size=k, max_size=k)), dtype=torch.float64
    )
    alpha = float(statistics.intensification_ratio(before, after))
    assert alpha == pytest.approx(slow_alpha(before.tolist(), after.tolist()), abs=1e-9)
    order = torch.tensor(data.draw(st.permutations(range(k))))
    near = pytest.approx(alpha, rel=1e-6, abs=1e-9)
    assert float(statistics.intensification_ratio(before[order], after[order])) == near
    # Normalised balances do not know how good a model is.
    weaker = data.draw(st.floats(0.1, 1))
    assert float(statistics.intensification_ratio(before * weaker, after)) == near
    assert float(statistics.intensification_ratio(before, after * weaker)) == near
    unseen = torch.tensor([NAN], dtype=torch.float64)
    there = torch.tensor([0.5], dtype=torch.float64)
    for one, other in ((unseen, there), (there, unseen)):
        pair = torch.cat([before, one]), torch.cat([after, other])
        assert float(statistics.intensification_ratio(*pair)) == near
    means = {"accuracy_before": float(before.mean()), "accuracy_after": float(after.mean())}
    assert float(statistics.intensification_ratio(before, after, **means)) == near
    stacked = statistics.intensification_ratio(
        torch.stack([before, before]), torch.stack([after, before])
    )
    assert stacked.tolist() == [near, pytest.approx(1)]


# --- intervals ------------------------------------------------------------------------------------


# --- tests ----------------------------------------------------------------------------------------
