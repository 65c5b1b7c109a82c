"""What is recorded does not depend on batches, ranks, checkpoints or files, whatever is observed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ranks
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_recorder import assert_same, through_a_file
from torch import Tensor

from lightning_fairprune import signals
from lightning_fairprune._observe.recorder import EpochRecorder
from lightning_fairprune.records.dynamics import Dynamics

C = 3
names = st.lists(st.sampled_from(sorted(signals.__all__)), unique=True, max_size=3)
sizes = st.integers(1, 20)


@dataclass
class Run:
    """Which samples each epoch saw, in which order, and with what logits."""

    target: Tensor
    group: Tensor | None
    order: list[Tensor]
    logits: list[Tensor]  # of all samples

    def recorder(self, names: list[str]) -> EpochRecorder:
        return EpochRecorder(len(self.target), names, grouped=self.group is not None)

    def batches(self, epoch: int, size: int) -> list[Any]:
        return [
            (
                i,
                self.logits[epoch][i],
                self.target[i],
                None if self.group is None else self.group[i],
            )
            for i in self.order[epoch].split(size)
        ]

    def record(self, names: list[str], size: int) -> Dynamics:
        recorder = self.recorder(names)
        for epoch in range(len(self.order)):
            for batch in self.batches(epoch, size):
                recorder.update(*batch)
            recorder.finish_epoch(epoch)
        return recorder.dynamics()


@st.composite
def runs(draw: st.DrawFn, *, whole: bool = False) -> Run:
    n = draw(st.integers(1, 20))
    target = draw(st.lists(st.integers(0, C - 1), min_size=n, max_size=n))
    epochs = draw(st.integers(1, 3))
    order, logits = [], []
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    for _ in range(epochs):
        seen = n if whole else draw(st.integers(1, n))
        order.append(torch.tensor(draw(st.permutations(range(n)))[:seen]))
        logits.append(torch.randn(n, C, generator=generator))
    group = torch.tensor(target) % 2 if draw(st.booleans()) else None
    return Run(torch.tensor(target), group, order, logits)


@given(runs(), names, sizes, sizes)
def test_the_size_of_batches_and_their_order_do_not_matter(
    run: Run, names: list[str], one: int, other: int
) -> None:
    first = run.record(names, one)
    run.order = [order.sort(descending=True).values for order in run.order]
    assert_same(first, run.record(names, other))


@given(runs(), names, sizes, st.integers(0, 100))
def test_a_checkpoint_anywhere_changes_nothing(
    run: Run, names: list[str], size: int, cut: int
) -> None:
    recorder, step = run.recorder(names), 0
    for epoch in range(len(run.order)):
        for batch in [*run.batches(epoch, size), None]:
            if step == cut % (sum(len(o) for o in run.order) + 1):
                state = through_a_file(recorder.state_dict())
                recorder = run.recorder(names)
                recorder.load_state_dict(state)
            step += 1
            if batch is not None:
                recorder.update(*batch)
        recorder.finish_epoch(epoch)
    assert_same(recorder.dynamics(), run.record(names, size))


@given(runs(), names, st.integers(2, 3))
def test_ranks_together_see_what_one_sees(run: Run, names: list[str], num_ranks: int) -> None:
    """Without padding; some ranks may see nothing."""

    def on(rank: int) -> Callable[[Any, Any], Dynamics]:
        def work(add: Any, _: Any) -> Dynamics:
            recorder = run.recorder(names)
            for epoch in range(len(run.order)):
                for indices, logits, target, group in run.batches(epoch, len(run.target)):
                    part = slice(rank, None, num_ranks)
                    if len(indices[part]):
                        mine = None if group is None else group[part]
                        recorder.update(indices[part], logits[part], target[part], mine)
                recorder.num_classes = C  # which a rank without samples learns from the others
                recorder.finish_epoch(epoch, add)
            return recorder.dynamics()

        return work

    alone = run.record(names, 7)
    for found in ranks.together([on(rank) for rank in range(num_ranks)]):
        assert_same(found, alone)
