"""One validation is observed, copied and summed once, whoever wants its counts."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest
import torch
import users
from torch import Tensor, nn

import lightning_fairprune as lfp
from lightning_fairprune import quotas
from lightning_fairprune._observe import validation
from lightning_fairprune.counts import Tally
from lightning_fairprune.history import RecallHistory

BATCHES = 3  # of one validation


class LossModel(users.Model):
    """Has its loss as a module and, if asked to, closes classes."""

    def __init__(self, closed: bool = False) -> None:
        super().__init__()
        self.criterion, self.closed = nn.CrossEntropyLoss(), closed
        self.net.append(nn.Linear(users.NUM_CLASSES, 6))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        if not self.closed:
            return logits
        return logits.masked_fill(torch.arange(6) >= 4, -torch.inf)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        return self.criterion(self(x), y)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.criterion(self(x), y)


def half(batch: Any) -> Tensor:
    return (batch[0][:, 0] * 1000).long() % 2


def own_logits(module: Any, batch: Any) -> tuple[Tensor, Tensor]:
    return module(batch[0]), batch[1]


def callbacks(**pruning: Any) -> tuple[Any, Any, Any]:
    return (
        lfp.DataPruning(0.5, 1, quota=quotas.drop, update_every=1, **pruning),
        lfp.RecallMonitor(group_by=half, figures=False),
        lfp.ClassWeighting(),
    )


def fit(
    order: tuple[int, ...], among: tuple[Any, Any, Any], **model: Any
) -> tuple[RecallHistory, list[Tensor], Tensor, Tensor]:
    """Returns what each callback made of the validations, and the final weights."""
    pruning, monitor, weighting = among
    torch.manual_seed(0)
    trainer = users.trainer(max_epochs=4, callbacks=[among[i] for i in order])
    module = LossModel(**model)
    trainer.fit(module, datamodule=users.Data())
    weights = torch.cat([p.detach().flatten() for p in module.parameters()])
    estimates = [estimate.recall.nan_to_num(-1) for estimate in pruning.history]
    assert weighting.weight is not None
    return monitor.history, estimates, weighting.weight, weights


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    seen = {"updates": 0, "reductions": 0}
    update, add, most = Tally.update, validation.sum_over_ranks, validation.max_over_ranks

    def counted(*args: Any) -> None:
        seen["updates"] += 1
        update(*args)

    def reducing(way: Any) -> Any:
        def over(trainer: Any) -> Any:
            def reduce(tensor: Tensor) -> Tensor:
                seen["reductions"] += 1
                reduced: Tensor = way(trainer)(tensor)
                return reduced

            return reduce

        return over

    monkeypatch.setattr(Tally, "update", counted)
    monkeypatch.setattr(validation, "sum_over_ranks", reducing(add))
    monkeypatch.setattr(validation, "max_over_ranks", reducing(most))
    return seen


def test_three_callbacks_count_a_batch_once_and_sum_once(calls: dict[str, int]) -> None:
    fit((0, 1, 2), callbacks())
    assert calls == {
        "updates": 4 * BATCHES,
        "reductions": 4 * 2,
    }  # how many there are; how many were right


@pytest.mark.parametrize("order", list(permutations(range(3)))[1:], ids=str)
def test_the_order_of_callbacks_does_not_matter(order: tuple[int, ...]) -> None:
    expected, found = fit((0, 1, 2), callbacks()), fit(order, callbacks())
    for one, other in zip(expected[0].evaluations, found[0].evaluations, strict=True):
        assert one.name == other.name
        assert torch.equal(one.counts.tp, other.counts.tp)
        assert torch.equal(one.counts.support, other.counts.support)
    assert all(map(torch.equal, expected[1], found[1]))
    assert torch.equal(expected[2], found[2])
    assert torch.equal(expected[3], found[3])


@pytest.mark.filterwarnings("ignore:.*keep no sample")  # recall_window=1, shrinkage=0
@pytest.mark.parametrize(
    ("pruning", "updates"),
    [
        ({"group_by": half}, BATCHES),  # the groups of the monitor
        ({"group_by": lambda batch: batch[1]}, BATCHES),  # others, from the same look
        ({"logits_fn": own_logits}, BATCHES),  # one for all callbacks
    ],
)
def test_each_gets_what_it_asked_for(
    calls: dict[str, int], pruning: dict[str, Any], updates: int
) -> None:
    history, estimates, *_ = fit((0, 1, 2), callbacks(recall_window=1, shrinkage=0, **pruning))
    assert calls["updates"] == 4 * updates
    name = "val/groups" if pruning.get("group_by") is half else "val"
    seen = [e.counts.recall.nan_to_num(-1) for e in history.evaluations if e.name == name]
    for recall, counted in zip(estimates, seen, strict=True):
        torch.testing.assert_close(recall, counted[: len(recall)])


def test_validations_that_nothing_is_wanted_of_are_not_observed(calls: dict[str, int]) -> None:
    monitor = lfp.RecallMonitor(every_n_epochs=3, figures=False)
    trainer = users.trainer(max_epochs=4, callbacks=[monitor])
    trainer.fit(LossModel(), datamodule=users.Data())
    assert calls["updates"] == BATCHES
    trainer.validate(LossModel(), datamodule=users.Data(), verbose=False)
    assert calls["updates"] == 2 * BATCHES


def test_only_a_fit_sets_quotas_and_weights(calls: dict[str, int]) -> None:
    pruning, _, weighting = callbacks()
    trainer = users.trainer(max_epochs=2, callbacks=[pruning, weighting])
    trainer.fit(LossModel(), datamodule=users.Data())
    assert calls["updates"] == 2 * BATCHES
    trainer.validate(LossModel(), datamodule=users.Data(), verbose=False)
    trainer.test(LossModel(), datamodule=users.Data(), verbose=False)
    assert calls["updates"] == 2 * BATCHES
    assert len(pruning.history) == 2


def test_a_fit_with_closed_classes_is_healthy() -> None:
    history, estimates, weight, _ = fit((0, 1, 2), callbacks(), closed=True)
    assert len(history.evaluations) == 2 * 4
    assert history.last("val").counts.support.tolist()[4:] == [0, 0]
    assert len(estimates) == 4
    assert weight.isfinite().all()
