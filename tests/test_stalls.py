"""The guard: classes that take more than their share and do not answer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

import lightning_fairprune as lfp
from lightning_fairprune import quotas
from lightning_fairprune.callbacks._data import checks
from lightning_fairprune.selection import Selection, stalls
from lightning_fairprune.selection.decision import Decision, Estimate

K, SUPPORT = 10, torch.full((10,), 200)
RECALL = torch.tensor([0.6] + [0.9] * 9).double()
Rule = Callable[..., Tensor]


def decision(rule: Rule = quotas.drop, guard: bool = True) -> Decision:
    made = Decision(0.3, rule, guard=guard)
    made.learn(torch.arange(K).repeat_interleave(100))
    return made


def wobble(seed: int, recall: Tensor = RECALL) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (recall + 0.005 * torch.randn(K, generator=generator)).clamp(0, 1)


def run(made: Decision, recall: Callable[[int, Decision], Tensor], first: int, last: int) -> None:
    for epoch in range(first, last):
        made.estimate(epoch, recall(epoch, made), SUPPORT)


def deaf(epoch: int, _: Decision) -> Tensor:
    """Class 0 stays where it is, whatever its share."""
    return wobble(epoch)


def answering(epoch: int, made: Decision) -> Tensor:
    """The error of class 0 falls like samples ** -0.4."""
    share = 1.0 if made.quota is None else float(made.quota[0]) / 30
    recall = RECALL.clone()
    recall[0] = 1 - 0.4 * share**-0.4
    return wobble(epoch, recall)


@pytest.mark.parametrize("rule", [quotas.drop, quotas.Minimax(3.0), quotas.drop_reference])
def test_a_class_that_does_not_answer_is_held_and_frozen(rule: Rule) -> None:
    made = decision(rule)
    run(made, deaf, 0, 12)
    states = [e.held[0].item() for e in made.history if e.held is not None]
    start = states.index(stalls.ON_TRIAL)
    assert start >= 2
    assert states[start : start + 2] == [stalls.ON_TRIAL] * 2
    assert states[start + 2 :] == [stalls.FROZEN] * (12 - start - 2)
    assert made.frozen == [0]
    shares = [e.quota[0].item() for e in made.history if e.quota is not None]
    assert min(shares[1:start]) > 40
    assert max(shares[start:]) <= 30  # of 300 samples, 100 of 1,000 in the class
    assert all(int(e.quota.sum()) == 300 for e in made.history if e.quota is not None)


def test_a_class_that_answers_gets_its_samples_back_for_good() -> None:
    made, plain = decision(), decision(guard=False)
    run(made, answering, 0, 12)
    run(plain, answering, 0, 12)
    states = [e.held[0].item() for e in made.history if e.held is not None]
    assert stalls.FROZEN not in states
    assert made.frozen == []
    assert made.quota is not None
    assert plain.quota is not None
    if stalls.ON_TRIAL in states:
        assert states[-1] == stalls.ANSWERED
    assert made.quota[0] == pytest.approx(plain.quota[0].item(), abs=3)


def test_recalls_within_noise_change_nothing() -> None:
    made, plain = decision(), decision(guard=False)
    for epoch in range(8):
        generator = torch.Generator().manual_seed(epoch)
        counts = torch.rand(200, K, generator=generator) < 0.8
        recall = counts.double().mean(0)
        assert torch.equal(
            made.estimate(epoch, recall, SUPPORT), plain.estimate(epoch, recall, SUPPORT)
        )
    assert all(e.held is None or not e.held.any() for e in made.history)


def test_a_rule_without_cap_is_left_alone() -> None:
    def rule(sizes: Tensor, recall: Tensor, budget: int) -> Tensor:
        return quotas.drop(sizes, recall, budget)

    made, plain = decision(rule), decision(guard=False)
    run(made, deaf, 0, 8)
    run(plain, deaf, 0, 8)
    assert made.history[-1].held is None
    assert torch.equal(made.quota, plain.quota)


def test_the_caps_of_a_partial_stay() -> None:
    made = decision(partial(quotas.drop, cap=[100] * 9 + [20]))
    run(made, deaf, 0, 8)
    assert made.frozen == [0]
    assert made.quota is not None
    assert made.quota[0] <= 30
    assert made.quota[9] <= 20


@pytest.mark.parametrize("rule", [quotas.drop, quotas.Minimax(3.0)])
def test_a_resumed_decision_holds_the_same_classes(rule: Rule) -> None:
    whole = decision(rule)
    run(whole, deaf, 0, 4)
    state = whole.state_dict()
    run(whole, deaf, 4, 8)
    resumed = decision(quotas.Minimax(3.0) if rule is not quotas.drop else rule)
    resumed.load_state_dict(state)
    run(resumed, deaf, 4, 8)
    assert torch.equal(resumed.quota, whole.quota)
    assert resumed.frozen == whole.frozen == [0]


def test_an_older_checkpoint_without_held_classes_loads() -> None:
    made = decision()
    run(made, deaf, 0, 2)
    state = made.state_dict()
    state["history"] = [estimate[:3] for estimate in state["history"]]
    made.load_state_dict(state)
    run(made, deaf, 2, 8)
    assert made.frozen == [0]


def test_the_record_names_the_frozen_classes(tmp_path: Path) -> None:
    held = torch.tensor([stalls.FROZEN, 0], dtype=torch.uint8)
    history = (
        Estimate(1, torch.tensor([0.5, 0.9]), torch.tensor([2, 1])),
        Estimate(3, torch.tensor([0.5, 0.9]), torch.tensor([2, 1]), held),
    )
    chosen = Selection(
        torch.tensor([0, 1, 3]), 4, torch.tensor([2, 1]), torch.tensor([3, 1]), "random", 0
    )
    record = lfp.PruningRecord(chosen, torch.tensor([0, 0, 0, 1]), history=history)
    record.save(tmp_path)
    found = lfp.PruningRecord.load(tmp_path / "pruning.safetensors")
    assert found.frozen == [0]
    assert found.history[0].held is None
    assert torch.equal(found.history[1].held, held)


def test_a_frozen_class_is_named_once() -> None:
    made, settings = decision(), lfp.DataPruning(0.3, 2).settings
    data = TensorDataset(torch.zeros(1))
    data.classes = ["cat", *"bcdefghij"]  # type: ignore[attr-defined]
    run(made, deaf, 0, 8)
    with pytest.warns(
        UserWarning, match=r"more data does not help class 0 \(cat\): look at its labels"
    ):
        checks.frozen(settings, made, [], data)
    checks.frozen(settings, made, [0], data)  # a second warning would be an error


def test_words() -> None:
    assert stalls.in_words([3, 5], None, "groups") == (
        "more data does not help groups 3, 5: look at their labels."
    )
