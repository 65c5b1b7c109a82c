"""Which samples of an evaluation were right: counted, saved, resumed, on several ranks, and compared."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import ranks
import torch
import users
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

import lightning_fairprune as lfp
from lightning_fairprune._files import read_tensors, write_tensors
from lightning_fairprune.counts import Answers, ClassCounts, Tally, counts_of
from lightning_fairprune.counts import _tally as tally_module
from lightning_fairprune.history import Evaluation, RecallHistory

K = users.NUM_CLASSES


def made(label: Tensor, right: Tensor) -> ClassCounts:
    tp = label[right].bincount(minlength=K)
    return ClassCounts(tp, label.bincount(minlength=K), Answers.of(label, right))


def drawn(seed: int, n: int = 60) -> tuple[Tensor, Tensor, Tensor]:
    """Labels, and which samples two models have right."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(K, (n,), generator=generator)
    return label, *(torch.rand(n, generator=generator) < p for p in (0.7, 0.5))


def test_changes_are_those_of_a_loop() -> None:
    label, before, now = drawn(0)
    lost, gained = [0] * K, [0] * K
    for k, first, then in zip(label.tolist(), before.tolist(), now.tolist(), strict=True):
        lost[k] += first and not then
        gained[k] += then and not first
    found = made(label, now).changes(made(label, before))
    assert found is not None
    assert [part.tolist() for part in found] == [lost, gained]


@pytest.mark.parametrize("how", ["order", "labels", "unknown", "support"])
def test_other_samples_are_not_compared(how: str) -> None:
    label, before, now = drawn(1)
    one, other = made(label, now), made(label, before)
    if how == "order":
        other = made(label.flip(0), before.flip(0))
    elif how == "labels":
        other = made((label + 1) % K, before)
    elif how == "unknown":
        other = ClassCounts(other.tp, other.support)
    else:
        other = ClassCounts(other.tp[:3], other.support[:3])
    assert one.changes(other) is None
    assert other.changes(one) is None


def test_answers_are_of_all_samples() -> None:
    label, before, _ = drawn(2)
    counts = made(label, before)
    with pytest.raises(ValueError, match="`answers` must be of all 61 samples, got 60"):
        ClassCounts(counts.tp, counts.support + torch.tensor([1, 0, 0, 0]), counts.answers)


def tally(label: Tensor, logits: Tensor, *, groups: Tensor | None = None) -> Tally:
    found = Tally(0 if groups is None else 1, ignore_index=-100)
    for i in range(0, len(label), 7):
        part = slice(i, i + 7)
        found.update(logits[part], label[part], *([] if groups is None else [groups[part]]))
    return found


def alike(one: ClassCounts, other: ClassCounts) -> bool:
    a, b = one.answers, other.answers
    assert a is not None
    assert b is not None
    return torch.equal(a.right, b.right) and a.digest == b.digest


def test_a_tally_knows_them_by_class_and_by_group() -> None:
    label, *_ = drawn(3)
    logits = torch.randn(60, K, generator=torch.Generator().manual_seed(4))
    group = label // 2
    ignored = label.clone()
    ignored[10] = -100
    right, known = logits.argmax(1) == label, ignored >= 0
    [(classes, groups)] = counts_of(
        [tally(ignored, logits, groups=group)], gather=lambda t: t[None]
    )
    assert alike(classes, made(label[known], right[known]))
    assert alike(groups, made(group[known], right[known]))
    assert counts_of([tally(label, logits)])[0][0].answers is None


def test_labels_of_one_sample_are_samples_of_each() -> None:
    logits, target = torch.tensor([[1.0, -1.0], [1.0, 1.0]]), torch.tensor([[1, 1], [0, 1]])
    one = Tally()
    one.update_labels(logits, target)
    [(found,)] = counts_of([one], gather=lambda t: t[None])
    assert found.answers is not None
    assert found.answers.right.tolist() == [True, False, True]


def test_too_many_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    label, right, _ = drawn(5)
    logits = torch.eye(K)[torch.where(right, label, (label + 1) % K)]
    monkeypatch.setattr(tally_module, "MOST", 60)
    [(found,)] = counts_of([tally(label, logits)], gather=lambda t: t[None])
    assert found.answers is None
    assert found.tp.sum() == right.sum()


@pytest.mark.parametrize("n", [60, 61])
def test_ranks_that_share_an_evaluation_know_all(n: int) -> None:
    label, *_ = drawn(6, n)
    logits = torch.randn(n, K, generator=torch.Generator().manual_seed(7))
    barrier, shared = threading.Barrier(2, timeout=300), [torch.empty(0)] * 2

    def gathered(rank: int, tensor: Tensor) -> Tensor:
        shared[rank] = tensor.clone()
        barrier.wait()
        stacked = torch.stack(list(shared))
        barrier.wait()
        return stacked

    def of(rank: int) -> ClassCounts:
        own = tally(label[rank::2], logits[rank::2])
        reduce = (
            lambda t: gathered(rank, t).sum(0),
            lambda t: gathered(rank, t).amax(0),
        )
        return counts_of([own], *reduce, gather=lambda t: gathered(rank, t))[0][0]

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(of, range(2)))
    alone = counts_of([tally(label, logits)], gather=lambda t: t[None])[0][0]
    assert all(alike(one, alone) for one in found)


def fit(*more: Any, seed: int = 0, resume: Any = None, **options: Any) -> tuple[Any, Any]:
    pl.seed_everything(seed, verbose=False)
    model, monitor = users.Model(), lfp.RecallMonitor(reference="before_pruning", figures=False)
    callbacks = [lfp.DataPruning(0.5, 2), monitor, *more]
    trainer = users.trainer(callbacks=callbacks, **options)
    trainer.fit(model, datamodule=users.Data(), ckpt_path=resume)
    return model, monitor.history


def test_a_fit_leaves_those_of_its_last_validation(tmp_path: Path) -> None:
    model, history = fit()
    val = users.Blobs(60, seed=1)
    with torch.no_grad():
        right = model.eval()(val.x).argmax(1) == val.y
    assert alike(history.last("val").counts, made(val.y, right))
    assert all(e.counts.answers is None for e in history.evaluations[:-1])
    history.save(tmp_path)
    loaded = RecallHistory.load(tmp_path)
    assert alike(loaded.last("val").counts, history.last("val").counts)
    assert alike(loaded.reference["val"], history.reference["val"])
    _, other = fit(seed=1)
    changed = loaded.last("val").counts.changes(other.last("val").counts)
    assert changed is not None
    lost, gained = changed
    assert lost.sum() + gained.sum() > 0
    before, now = other.last("val").counts.tp, loaded.last("val").counts.tp
    assert torch.equal(gained - lost, now - before)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_resumed_fit_has_the_same(tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    _, whole = fit(keep, enable_checkpointing=True)
    for epoch in (1, 2, 3):  # the last one trains no more
        _, resumed = fit(resume=tmp_path / f"epoch={epoch}.ckpt")
        assert alike(resumed.last("val").counts, whole.last("val").counts)
        assert alike(resumed.reference["val"], whole.reference["val"])


def test_records_of_earlier_releases_have_none(tmp_path: Path) -> None:
    label, before, now = drawn(8)
    last = Evaluation("test", 1, 10, False, made(label, now))
    RecallHistory((last,), reference={"test": made(label, before)}).save(tmp_path)
    file = tmp_path / "recalls.safetensors"
    tensors, metadata = read_tensors(file, "RecallHistory")
    del metadata["answers"]
    old = {key: t for key, t in tensors.items() if not key.startswith("answers/")}
    about = {"history": metadata["history"]}
    write_tensors(file, "RecallHistory", old, about)
    found = RecallHistory.load(tmp_path)
    assert found.last("test").counts.answers is None
    assert torch.equal(found.last("test").counts.tp, last.counts.tp)
    # What lacks the samples that it promises is damaged.
    write_tensors(file, "RecallHistory", old, {**about, "answers": json.dumps({"last/test": "0"})})
    with pytest.raises(ValueError, match="is damaged"):
        RecallHistory.load(tmp_path)


def test_a_state_of_earlier_releases_is_loaded() -> None:
    label, _, now = drawn(9)
    state = RecallHistory((Evaluation("val", 1, 10, False, made(label, now)),)).state_dict()
    del state["answers"]
    assert RecallHistory.from_state_dict(state).last("val").counts.answers is None


def on_two_ranks() -> dict[str, Any]:
    _, history = fit(devices=2, strategy="ddp")
    known = history.last("val").counts.answers
    return {"right": known.right.tolist(), "digest": known.digest}


def test_two_ranks_have_the_order_of_one(tmp_path: Path) -> None:
    [[one, other]] = ranks.launch(__file__, [{}], tmp_path)
    assert one == other
    assert len(one["right"]) == 60
    _, alone = fit()
    assert one["digest"] == alone.last("val").counts.answers.digest


if __name__ == "__main__":
    ranks.main(on_two_ranks)
