"""The recorder against a slow one that keeps a dictionary."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import ranks
import torch
from torch import Tensor

from lightning_fairprune import signals
from lightning_fairprune._observe.recorder import EpochRecorder
from lightning_fairprune.records.dynamics import Dynamics

N, C, EPOCHS = 40, 5, 3
ALL = tuple(signals.__all__)
# Half a unit in the last place of float16 in [1, 2).
STORED = {"atol": 6e-4, "rtol": 5e-4}


class SlowRecorder:
    """What each sample did in each epoch, one at a time, in Python's floats."""

    def __init__(self) -> None:
        self.epochs: list[dict[int, list[dict[str, float]]]] = []

    def begin(self) -> None:
        self.epochs.append({})

    def update(self, indices: Tensor, logits: Tensor, target: Tensor) -> None:
        for i, z, y in zip(indices.tolist(), logits.tolist(), target.tolist(), strict=True):
            self.epochs[-1].setdefault(i, []).append(self.signals(z, y))

    @staticmethod
    def signals(z: list[float], y: int) -> dict[str, float]:
        total = sum(math.exp(v) for v in z)
        p = [math.exp(v) / total for v in z]
        error = [q - (k == y) for k, q in enumerate(p)]
        return {
            "loss": -math.log(p[y]),
            "el2n": math.sqrt(sum(e * e for e in error)),
            "p_true": p[y],
            "margin": z[y] - max(v for k, v in enumerate(z) if k != y),
            "entropy": -sum(q * math.log(q) for q in p),
            "correct": float(z.index(max(z)) == y),
            "rival": float(max((k for k in range(len(z)) if k != y), key=lambda k: z[k])),
        }

    def check(self, dynamics: Dynamics, names: tuple[str, ...] = ALL) -> None:
        assert dynamics.num_epochs == len(self.epochs)
        for epoch, seen in enumerate(self.epochs):
            assert dynamics.observed[epoch].nonzero().flatten().tolist() == sorted(seen)
            for name in names:
                row = dynamics.signal(name)[epoch].double()
                for i, values in seen.items():
                    mean = sum(value[name] for value in values) / len(values)
                    expected = torch.tensor(mean, dtype=torch.float64)
                    torch.testing.assert_close(row[i], expected, **STORED)


class Stream:
    """The same samples, in a new order and with new logits, every epoch."""

    def __init__(self, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.target = torch.randint(0, C, (N,), generator=self.generator)
        self.group = self.target % 2

    def epoch(self, batch: int, share: float = 1.0) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        order = torch.randperm(N, generator=self.generator)[: round(share * N)]
        logits = 2 * torch.randn(len(order), C, generator=self.generator)
        return [
            (i, z, self.target[i], self.group[i])
            for i, z in zip(order.split(batch), logits.split(batch), strict=True)
        ]


def assert_same(one: Dynamics, other: Dynamics) -> None:
    assert torch.equal(one.target, other.target)
    assert torch.equal(one.observed, other.observed)
    assert one.signals.keys() == other.signals.keys()
    for name, values in one.signals.items():
        assert values.dtype == other.signals[name].dtype
        torch.testing.assert_close(values, other.signals[name], rtol=0, atol=0, equal_nan=True)
    assert (one.group is None) == (other.group is None)
    assert one.group is None or torch.equal(one.group, other.group)


@pytest.mark.parametrize("share", [1.0, 0.6])
@pytest.mark.parametrize("batch", [1, 7, N])
def test_recorder_agrees_with_a_dictionary(batch: int, share: float) -> None:
    stream, recorder, slow = Stream(), EpochRecorder(N, ALL, grouped=True), SlowRecorder()
    for epoch in range(EPOCHS):
        slow.begin()
        for indices, logits, target, group in stream.epoch(batch, share):
            recorder.update(indices, logits, target, group)
            slow.update(indices, logits, target)
        recorder.finish_epoch(epoch)
    dynamics = recorder.dynamics()
    slow.check(dynamics)
    ever = dynamics.observed.any(0)
    assert torch.equal(dynamics.target, torch.where(ever, stream.target, -1))
    assert torch.equal(dynamics.group, torch.where(ever, stream.group, -1))
    assert dynamics.signals["correct"].dtype == torch.bool
    assert dynamics.signals["el2n"].dtype == torch.float16
    assert dynamics.signals["loss"].dtype == torch.float32


def test_half_precision_logits_and_a_gradient_are_taken() -> None:
    recorder, slow = EpochRecorder(N, ("el2n", "loss")), SlowRecorder()
    slow.begin()
    for indices, logits, target, _ in Stream().epoch(9):
        logits = logits.bfloat16().requires_grad_()
        recorder.update(indices, logits, target)
        slow.update(indices, logits, target)
    recorder.finish_epoch(0)
    slow.check(recorder.dynamics(), ("el2n", "loss"))
    assert not recorder.dynamics().signal("el2n").requires_grad


@pytest.mark.parametrize("names", [(), ALL])
def test_batches_may_use_their_memory_again(names: tuple[str, ...]) -> None:
    plain, reused = (EpochRecorder(N, names, grouped=True) for _ in range(2))
    memory = torch.empty(8, C), torch.empty(8).long(), torch.empty(8).long()
    for indices, *batch in Stream().epoch(8):
        plain.update(indices, *batch)
        for place, value in zip(memory, batch, strict=True):
            place.copy_(value)
        reused.update(indices, *memory)
    for recorder in (plain, reused):
        recorder.finish_epoch(0)
    assert_same(plain.dynamics(), reused.dynamics())


def test_labels_alone_are_learned_once() -> None:
    recorder, stream = EpochRecorder(N), Stream()
    assert recorder.needed
    first, second = stream.epoch(20)
    recorder.update(*first[:3])
    recorder.finish_epoch(0)
    assert recorder.needed  # half of them are unknown
    recorder.update(*second[:3])
    recorder.finish_epoch(1)
    assert not recorder.needed
    dynamics = recorder.dynamics()
    assert torch.equal(dynamics.target, stream.target)
    assert dynamics.num_epochs == 0
    assert EpochRecorder(N, ("loss",)).needed


def test_epoch_without_a_sample_leaves_no_row() -> None:
    recorder = EpochRecorder(N, ALL)
    recorder.finish_epoch(0)
    assert recorder.dynamics().num_epochs == 0


def shards(stream: Stream, num_ranks: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """One epoch dealt out, with the padding that an uneven tail needs; new logits for that."""
    (batch,) = stream.epoch(N)
    order, logits = batch[0], batch[1]
    padding = -N % num_ranks
    order = torch.cat([order, order[:padding]])
    logits = torch.cat([logits, torch.randn(padding, C, generator=stream.generator)])
    return [
        (order[r::num_ranks], logits[r::num_ranks], stream.target[order[r::num_ranks]])
        for r in range(num_ranks)
    ]


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_ranks_add_up_to_one(num_ranks: int) -> None:
    stream, slow = Stream(), SlowRecorder()
    recorders = [EpochRecorder(N, ALL) for _ in range(num_ranks)]
    for epoch in range(EPOCHS):
        slow.begin()
        for recorder, shard in zip(recorders, shards(stream, num_ranks), strict=True):
            recorder.update(*shard)
            slow.update(*shard)

        def finish(recorder: EpochRecorder, epoch: int = epoch) -> Callable[..., None]:
            return lambda add, _: recorder.finish_epoch(epoch, add)

        ranks.together([finish(recorder) for recorder in recorders])
    records = [recorder.dynamics() for recorder in recorders]
    for record in records[1:]:
        assert_same(records[0], record)
    assert torch.equal(records[0].target, stream.target)
    # A sample that padding gave to two ranks is right only if it was right on both.
    slow.check(records[0], tuple(set(ALL) - {"correct"}))
    for epoch, seen in enumerate(slow.epochs):
        for i, values in seen.items():
            expected = all(value["correct"] for value in values)
            assert bool(records[0].signal("correct")[epoch, i]) is expected


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


def test_ranks_may_all_load_their_sum() -> None:
    stream = Stream()
    both = shards(stream, 2)
    halves = [slice(0, N // 4), slice(N // 4, N // 2)]

    def run(rank: int, interrupt: bool) -> Callable[..., Dynamics]:
        def on_rank(add: Any, _: Any) -> Dynamics:
            recorder = EpochRecorder(N, ALL)
            recorder.update(*(part[halves[0]] for part in both[rank]))
            if interrupt:
                state = through_a_file(recorder.state_dict(add))
                recorder = EpochRecorder(N, ALL)
                recorder.load_state_dict(state)
            recorder.update(*(part[halves[1]] for part in both[rank]))
            recorder.finish_epoch(0, add)
            return recorder.dynamics()

        return on_rank

    uninterrupted = ranks.together([run(0, False), run(1, False)])
    resumed = ranks.together([run(0, True), run(1, True)])
    for record in (*uninterrupted, *resumed):
        assert record.observed.all()
        assert_same(record, uninterrupted[0])


def test_sample_that_two_ranks_saw_stays_their_mean() -> None:
    def run(rank: int) -> Callable[..., Tensor]:
        def on_rank(add: Any, _: Any) -> Tensor:
            recorder = EpochRecorder(2, ("margin",))
            recorder.update(torch.tensor([0]), torch.tensor([[1.0 + rank, 0]]), torch.tensor([0]))
            state = through_a_file(recorder.state_dict(add))
            recorder = EpochRecorder(2, ("margin",))
            recorder.load_state_dict(state)
            recorder.finish_epoch(0, add)
            return recorder.dynamics().signal("margin")[0, 0]

        return on_rank

    assert [float(mean) for mean in ranks.together([run(0), run(1)])] == [1.5, 1.5]


def test_state_is_small_and_plain() -> None:
    recorder = EpochRecorder(N, ("correct", "p_true"))
    for batch in Stream().epoch(8):
        recorder.update(*batch[:3])
    recorder.finish_epoch(0)
    state = recorder.state_dict()
    assert state["running"] is None
    assert state["target"].dtype == torch.int16
    assert state["rows"]["correct"][0].numel() == N // 8
    assert state["rows"]["p_true"][0].dtype == torch.float16


@pytest.mark.parametrize(("names", "most"), [((), 5), (("el2n",), 7), (ALL, 24)])
def test_state_inside_an_epoch_is_as_narrow_as_the_buffers(
    names: tuple[str, ...], most: int
) -> None:
    recorder = EpochRecorder(N, names)
    recorder.update(*Stream().epoch(8)[0][:3])
    running = recorder.state_dict()["running"]
    assert sum(value.element_size() for value in running.values()) == most
    assert sum(value.nbytes for value in running.values()) == recorder.device_bytes


def test_many_classes_fit_the_stored_labels() -> None:
    classes = 2**15 + 2
    recorder, resumed = EpochRecorder(2), EpochRecorder(2)
    labels = torch.tensor([classes - 1, 0])
    recorder.update(torch.arange(2), torch.zeros(2, classes), labels)
    recorder.finish_epoch(0)
    resumed.load_state_dict(through_a_file(recorder.state_dict()))
    assert torch.equal(resumed.target, labels)


def test_state_of_other_data_or_another_score_is_refused() -> None:
    state = EpochRecorder(N, ("loss",)).state_dict()
    with pytest.raises(ValueError, match=r"written with 40 training samples.*now has 41"):
        EpochRecorder(N + 1, ("loss",)).load_state_dict(state)
    with pytest.raises(ValueError, match=r"recorded the signals \['loss'\].*needs \['el2n'\]"):
        EpochRecorder(N, ("el2n",)).load_state_dict(state)


def test_at_most_28_bytes_a_sample_on_the_device() -> None:
    assert EpochRecorder(1000, ALL, grouped=True).device_bytes <= 28 * 1000
    assert EpochRecorder(1000).device_bytes <= 5 * 1000
    recorder = EpochRecorder(1000, ALL)
    before = recorder.device_bytes
    for epoch in range(3):
        indices = torch.arange(1000)
        recorder.update(indices, torch.randn(1000, C), indices % C)
        recorder.finish_epoch(epoch)
    assert recorder.device_bytes == before
    recorder.release()
    assert recorder.device_bytes == 0
    assert recorder.dynamics().num_epochs == 3


def recorded(
    names: tuple[str, ...], change: Callable[[Tensor, Tensor], Any], *, epoch: int = 2
) -> EpochRecorder:
    """A recorder whose epoch before was fine, and that saw a changed batch since."""
    recorder, stream = EpochRecorder(N, names), Stream()
    ordered = torch.arange(N)
    logits = torch.randn(N, C, generator=stream.generator)
    recorder.update(ordered, logits, stream.target)
    recorder.finish_epoch(epoch - 1)
    logits, target = logits.clone(), stream.target.clone()
    change(logits, target)
    recorder.update(ordered, logits, target)
    return recorder


@pytest.mark.parametrize("name", sorted(set(ALL) - {"correct", "rival"}))
def test_value_that_is_not_finite_names_sample_and_epoch(name: str) -> None:
    def spoil(logits: Tensor, target: Tensor) -> None:
        logits[[7, 31]] = torch.nan

    recorder = recorded((name,), spoil)
    told = rf"`{name}` is nan for 2 samples in epoch 2, first for sample 7"
    with pytest.raises(ValueError, match=told):
        recorder.finish_epoch(2)


def test_closed_classes_are_recorded_where_the_signals_are_finite() -> None:
    # The softmax is (1/4, 3/4, 0); el2n is |p - y| over all classes.
    row = [0.0, math.log(3), -torch.inf]
    recorder = EpochRecorder(2, ALL)
    recorder.update(torch.arange(2), torch.tensor([row, row]), torch.tensor([0, 1]))
    recorder.finish_epoch(0)
    expected = {
        "correct": [False, True],
        "el2n": [math.sqrt(2) * 3 / 4, math.sqrt(2) / 4],
        "entropy": [math.log(4) - 3 / 4 * math.log(3)] * 2,
        "loss": [math.log(4), math.log(4 / 3)],
        "margin": [-math.log(3), math.log(3)],
        "p_true": [1 / 4, 3 / 4],
        "rival": [1.0, 0.0],
    }
    seen = recorder.dynamics()
    for name, values in expected.items():
        assert seen.signal(name)[0].tolist() == pytest.approx(values, abs=1e-3), name


def test_a_sample_of_a_closed_class_is_named() -> None:
    recorder = EpochRecorder(2, ("loss",))
    logits = torch.tensor([[0.0, 1.0], [0.0, -torch.inf]])
    recorder.update(torch.arange(2), logits, torch.tensor([1, 1]))
    told = "`loss` is inf for 1 samples in epoch 0, first for sample 1"
    with pytest.raises(ValueError, match=told):
        recorder.finish_epoch(0)


@pytest.mark.parametrize("names", [(), ALL])
@pytest.mark.parametrize("label", [-99, -1, C])
def test_label_out_of_range_is_named(label: int, names: tuple[str, ...]) -> None:
    def spoil(logits: Tensor, target: Tensor) -> None:
        target[[4, 9]] = label

    recorder = recorded(names, spoil)
    match = rf"every target must be in \[0, 5\), got {label} for sample 4 \(2 samples in epoch 2\)"
    with pytest.raises(ValueError, match=match):
        recorder.finish_epoch(2)


def test_negative_group_is_named() -> None:
    recorder = EpochRecorder(N, grouped=True)
    for indices, logits, target, group in Stream().epoch(N):
        recorder.update(indices, logits, target, group - 1)
    with pytest.raises(ValueError, match="every group must be 0 or more, got -1 for sample"):
        recorder.finish_epoch(0)


def test_label_that_changes_is_named() -> None:
    def spoil(logits: Tensor, target: Tensor) -> None:
        target[[11, 12, 30]] = (target[[11, 12, 30]] + 1) % C

    before = int(Stream().target[11])
    recorder = recorded((), spoil)
    now = (before + 1) % C
    match = (
        rf"the target of 3 samples changed in epoch 2, first for sample 11 from {before} to {now}"
    )
    with pytest.raises(ValueError, match=match):
        recorder.finish_epoch(2)


def test_collate_that_drops_samples_is_named() -> None:
    recorder = EpochRecorder(N, ALL)
    with pytest.raises(ValueError, match="returned 3 samples for 4 indices"):
        recorder.update(torch.arange(4), torch.zeros(3, C), torch.zeros(3).long())
