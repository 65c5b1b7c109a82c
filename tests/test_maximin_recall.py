"""The metric that needs all logits: as torchmetrics uses it, against cross-fitted offsets by hand."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_fairprune import offsets
from lightning_fairprune.metrics import MaximinRecall, WorstClassRecall


def drawn(n: int = 300, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.arange(n) % 3
    logits = torch.randn(n, 3, generator=generator)
    logits[torch.arange(n), target] += 1.5
    return logits - 1.5 * torch.arange(3), target


def expected(logits: Tensor, target: Tensor, loss: float = 0.01) -> float:
    right = offsets.cross_fitted(logits, target, max_average_loss=loss) == target
    return min(float(right[target == k].float().mean()) for k in range(3))


def test_batches_are_as_one() -> None:
    logits, target = drawn()
    metric = MaximinRecall(3)
    for part in torch.arange(300).split(70):
        metric.update(logits[part], target[part])
    assert float(metric.compute()) == pytest.approx(expected(logits, target))
    assert metric.compute() > WorstClassRecall(3)(logits, target) + 0.2
    assert metric.compute().dtype == torch.float32


def test_forward_is_of_the_batch_and_reset_forgets() -> None:
    metric, (one, other) = MaximinRecall(3), (drawn(seed=0), drawn(seed=1))
    for batch in (one, other):
        assert float(metric(*batch)) == pytest.approx(expected(*batch))
    both = torch.cat([one[0], other[0]]), torch.cat([one[1], other[1]])
    assert float(metric.compute()) == pytest.approx(expected(*both))
    metric.reset()
    metric.update(*other)
    assert float(metric.compute()) == pytest.approx(expected(*other))


def test_copies_and_saved_states_continue() -> None:
    (one, other), metric = (drawn(seed=0), drawn(seed=1)), MaximinRecall(3)
    metric.persistent(True)
    metric.update(*one)
    loaded = MaximinRecall(3)
    loaded.persistent(True)
    loaded.load_state_dict(metric.state_dict())
    for again in (copy.deepcopy(metric), pickle.loads(pickle.dumps(metric)), loaded):
        again.update(*other)
        both = torch.cat([one[0], other[0]]), torch.cat([one[1], other[1]])
        assert float(again.compute()) == pytest.approx(expected(*both))


def test_two_ranks_have_the_value_of_all_samples() -> None:
    parts = [drawn(seed=0), drawn(seed=1)]

    def gathered(value: Any, group: Any = None) -> list[Any]:
        i = 0 if value.ndim == 2 else 1
        return [part[i] for part in parts]

    metric = MaximinRecall(3, dist_sync_fn=gathered, distributed_available_fn=lambda: True)
    metric.update(*parts[0])
    both = torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])
    assert float(metric.compute()) == pytest.approx(expected(*both))


def test_positions_ignored_labels_and_strength() -> None:
    logits, target = drawn()
    target = target.where(torch.arange(300) % 7 > 0, -100)
    known = target != -100
    metric = MaximinRecall(3, ignore_index=-100, max_average_loss=0.05)
    metric.update(logits.reshape(30, 10, 3).movedim(2, 1), target.reshape(30, 10))
    assert float(metric.compute()) == pytest.approx(expected(logits[known], target[known], 0.05))


@pytest.mark.parametrize(
    ("preds", "target", "error"),
    [
        (torch.zeros(4, 2), torch.zeros(4).long(), ValueError),
        (torch.zeros(4).long(), torch.zeros(4).long(), TypeError),
        (torch.zeros(4, 3), torch.zeros(4), TypeError),
    ],
)
def test_wrong_batches(preds: Tensor, target: Tensor, error: type[Exception]) -> None:
    with pytest.raises(error):
        MaximinRecall(3).update(preds, target)


def test_labels_out_of_range_raise_in_compute() -> None:
    metric = MaximinRecall(3)
    metric.update(torch.zeros(6, 3), torch.tensor([0, 1, 2, 3, 0, 1]))
    with pytest.raises(ValueError, match="`target` must be in"):
        metric.compute()


def test_arguments() -> None:
    with pytest.raises(ValueError, match="max_average_loss"):
        MaximinRecall(3, max_average_loss=2)
    with pytest.raises(ValueError, match="num_classes"):
        MaximinRecall(0)
