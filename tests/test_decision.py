"""From labels, scores and recalls to subsets, without a Trainer."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import users
from torch.utils.data import DataLoader, TensorDataset

from lightning_fairprune import DataPruning, quotas, select
from lightning_fairprune.selection.decision import Decision

TARGET = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)


def test_budget_is_rounded_and_never_empty() -> None:
    decision = Decision(0.25, None)
    assert [decision.budget(n) for n in (100, 102, 3, 1)] == [25, 26, 1, 1]


def test_draws_are_those_of_select_under_consecutive_seeds() -> None:
    decision = Decision(0.3, quotas.drop, seed=7)
    decision.learn(TARGET, num_classes=3)
    quota = decision.estimate(4, torch.tensor([0.9, 0.8, 0.5]))
    assert quota.tolist() == quotas.drop([50, 30, 20], [0.9, 0.8, 0.5], 30).tolist()
    for seed in (7, 8, 9):
        expected = select(TARGET, quota, keep="random", seed=seed)
        assert torch.equal(decision.draw().indices, expected.indices)
    assert [estimate.epoch for estimate in decision.history] == [4]


@pytest.mark.parametrize("rule", [quotas.balanced, quotas.drop, quotas.Minimax(), None])
def test_state_goes_on_where_it_was(rule: Any) -> None:
    recalls = torch.tensor([[0.9, 0.8, 0.5], [0.7, 0.9, 0.6]], dtype=torch.float64)
    score = torch.rand(100)

    def begin() -> Decision:
        decision = Decision(0.3, rule, "hard" if rule is None else "random", seed=1)
        decision.learn(TARGET, score if rule is None else None, 3)
        return decision

    whole = begin()
    for epoch, recall in enumerate(recalls):
        whole.estimate(epoch, recall)
        expected = whole.draw()
    half = begin()
    half.estimate(0, recalls[0])
    half.draw()
    state = half.state_dict()
    resumed = Decision(0.3, rule, "hard" if rule is None else "random", seed=1)
    resumed.load_state_dict(state)
    resumed.estimate(1, recalls[1])
    assert torch.equal(resumed.draw().indices, expected.indices)
    assert len(resumed.history) == len(whole.history)


@pytest.mark.parametrize("keep", ["random", "hard"])
def test_a_rule_that_asks_for_difficulties_gets_those_of_the_score(keep: Any) -> None:
    score = torch.rand(100) * (1 + TARGET)
    decision = Decision(0.3, quotas.difficulty, keep)
    decision.learn(TARGET, score, 4)
    expected = quotas.difficulty(
        [50, 30, 20, 0], quotas.class_difficulty(score, TARGET, num_classes=4), 30
    )
    assert torch.equal(decision.estimate(0), expected)
    kept = select(TARGET, expected, keep=keep, score=score if keep == "hard" else None)
    assert torch.equal(decision.draw().indices, kept.indices)
    assert torch.equal(decision.quotas(torch.tensor([60, 40]), None, 50), torch.tensor([30, 20]))


@pytest.mark.parametrize("keep", ["random", "hard", "easy"])
def test_what_the_score_alone_would_keep(keep: Any) -> None:
    """Scores of 50, 30 and 20 samples that do not overlap: the hardest 30 are class 2 and a third of class 1.

    The classes explain 1 - sum(n^3 - n) / (N^3 - N) of the ranks.
    """
    decision = Decision(0.3, quotas.difficulty, keep)
    decision.learn(TARGET, TARGET + torch.linspace(0, 0.5, 100), 4)
    text = decision.by_score_alone()
    ends = ("class 1", "60% of class 0") if keep == "easy" else ("class 0", "100% of class 2")
    assert f"would keep 0% of {ends[0]} and {ends[1]};" in text
    assert "the classes explain 84% of its order" in text
    assert decision.draws == 0


def test_fixed_difficulties_stay() -> None:
    fixed = functools.partial(quotas.difficulty, difficulty=[0.0, 0.0, 1.0])
    decision = Decision(0.2, fixed)
    decision.learn(TARGET, torch.rand(100), 3)
    assert decision.estimate(0).tolist() == [0, 0, 20]


def test_state_is_narrow() -> None:
    decision = Decision(0.3, quotas.balanced)
    decision.learn(TARGET, torch.rand(100), 3)
    state = decision.state_dict()
    assert state["target"].dtype == torch.int16
    decision.learn(TARGET * 20_000)
    assert decision.state_dict()["target"].dtype == torch.int32


def test_classes_without_recall_or_sample() -> None:
    decision = Decision(0.3, quotas.drop)
    decision.learn(TARGET, num_classes=5)  # the logits tell five classes apart
    quota = decision.estimate(0, torch.tensor([0.9, 0.8]))
    assert quota.tolist()[3:] == [0, 0]
    assert quota[2] > 0


def test_rule_with_memory_forgets_an_earlier_fit() -> None:
    rule = quotas.Minimax()
    rule([1, 1], [0.1, 0.9], 1)
    assert rule.log_weight is not None
    Decision(0.3, rule)
    assert rule.log_weight is None


def test_nothing_learned_yet() -> None:
    with pytest.raises(RuntimeError, match=r"call learn\(\) first"):
        Decision(0.3, None).draw()


NAN = float("nan")


@pytest.mark.parametrize("rule", [quotas.drop, quotas.drop_reference, quotas.Minimax(step=5.0)])
def test_groups_that_only_validation_or_only_training_knows(rule: Any) -> None:
    decision = Decision(0.3, rule)
    decision.learn(TARGET)  # groups 0, 1, 2
    quota = decision.estimate(0, torch.tensor([0.9, NAN, 0.5, 0.0], dtype=torch.float64))
    assert quota.tolist()[3] == 0  # validation alone knows group 3
    assert 0 < quota[1] <= 30  # training alone knows group 1
    assert quota.sum() == 30
    assert torch.equal(torch.bincount(TARGET[decision.draw().indices], minlength=4), quota)
    fresh = Decision(0.3, rule)
    fresh.learn(TARGET)
    told = fresh.estimate(0, torch.tensor([0.9, NAN, 0.5], dtype=torch.float64))
    assert torch.equal(quota[:3], told)  # a group without samples has no say


def test_a_group_that_validation_has_not_met_at_all_counts_as_the_mean() -> None:
    decision = Decision(0.3, quotas.drop)
    decision.learn(TARGET)
    quota = decision.estimate(0, torch.tensor([0.9, 0.5], dtype=torch.float64))  # group 2 missing
    assert torch.equal(quota, quotas.drop([50, 30, 20], [0.9, 0.5, 0.7], 30))


class Grouped(users.Data):
    """Groups are label x attribute; label 3 x 1 is in validation alone, label 0 x 1 in training alone."""

    def setup(self, stage: str) -> None:
        super().setup(stage)
        attribute = torch.arange(103) % 2 * (self.train.y != 3)
        self.group = 2 * self.train.y + attribute
        self.val_group = 2 * self.val.y + torch.arange(60) % 2 * (self.val.y != 0)

    def train_dataloader(self) -> Any:
        return DataLoader(TensorDataset(self.train.x, self.train.y, self.group), 10, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(TensorDataset(self.val.x, self.val.y, self.val_group), 20)


class GroupedModel(users.Model):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        torch.nn.functional.cross_entropy(self(batch[0]), batch[1])


@pytest.mark.parametrize("rule", [quotas.drop, quotas.Minimax()])
def test_a_fit_with_groups_that_only_one_side_knows(rule: Any) -> None:
    users.pl.seed_everything(1, verbose=False)
    data = Grouped()
    callback = DataPruning(0.4, 2, quota=rule, group_by=2)
    users.trainer(callbacks=[callback], max_epochs=4).fit(GroupedModel(), datamodule=data)
    recall, quota = callback.history[0].recall, callback.history[0].quota
    assert recall.isnan().tolist() == [k == 1 for k in range(8)]
    sizes = torch.bincount(data.group, minlength=8)
    assert sizes[7] == 0
    assert quota[7] == 0
    assert quota[1] > 0
    kept = torch.bincount(data.group[callback.selection.indices], minlength=8)
    assert torch.equal(kept, callback.quota)
