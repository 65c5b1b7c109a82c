"""The metrics as torchmetrics and Lightning use them: states, copies, devices, ranks, collections, logs."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import oracles_metrics as slow
import pytest
import torch
import torch.multiprocessing as mp
import users
from oracles_metrics import CASES, Case
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics import MetricCollection
from torchmetrics.wrappers import ClasswiseWrapper

from lightning_fairprune import metrics

EVERY = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a.double(), b.double(), equal_nan=True, rtol=1e-9, atol=1e-12)


def expected(case: Case, parts: Any) -> Tensor:
    return case.expected(slow.count(*slow.joined(parts), 5))


def updated(metric: Any, parts: Any) -> Any:
    for part in parts:
        metric.update(*part)
    return metric


@EVERY
def test_forward_returns_the_value_of_the_batch(case: Case) -> None:
    metric = case.make(5).set_dtype(torch.float64)
    for batch in slow.batches():
        same(metric(*batch), expected(case, [batch]))
    same(metric.compute(), expected(case, slow.batches()))


@EVERY
def test_reset_forgets_the_samples_and_keeps_the_reference(case: Case) -> None:
    metric = updated(case.make(5).set_dtype(torch.float64), slow.batches(1))
    metric.compute()
    metric.reset()
    assert metric.tp.sum() == metric.support.sum() == 0
    same(updated(metric, slow.batches()).compute(), expected(case, slow.batches()))


@EVERY
def test_copies_go_on_from_where_they_were_taken(case: Case) -> None:
    first, *rest = slow.batches()
    metric = updated(case.make(5).set_dtype(torch.float64), [first])
    copies = [pickle.loads(pickle.dumps(metric)), copy.deepcopy(metric), metric.clone()]
    for other in (*copies, metric):
        same(updated(other, rest).compute(), expected(case, slow.batches()))


@EVERY
def test_a_state_that_is_saved_goes_on_in_another_object(case: Case) -> None:
    first, *rest = slow.batches()
    metric = case.make(5)
    assert not metric.state_dict()
    metric.persistent(True)
    state = updated(metric, [first]).state_dict()
    other = case.make(5).set_dtype(torch.float64)
    other.persistent(True)
    other.load_state_dict(state)
    same(updated(other, rest).compute(), expected(case, slow.batches()))


@EVERY
def test_casting_the_model_rounds_neither_counts_nor_reference(case: Case) -> None:
    metric = case.make(5).set_dtype(torch.float64)
    model = torch.nn.ModuleDict({"metric": metric})
    first, *rest = slow.batches()
    updated(metric, [first])
    model.half().to(torch.bfloat16).double()
    same(updated(metric, rest).compute(), expected(case, slow.batches()))


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_the_dtype_of_the_result(case: Case, dtype: torch.dtype) -> None:
    metric = case.make(5)
    if dtype != torch.float32:  # the default
        metric.set_dtype(dtype)
    value = updated(metric, slow.batches()).compute()
    assert value.dtype == (torch.int64 if case.metric == "ZeroRecallClasses" else dtype)
    assert metric.tp.dtype == metric.support.dtype == torch.int64


@pytest.mark.parametrize("inside", [True, False])
def test_a_reset_in_inference_mode_does_not_freeze_the_state(inside: bool) -> None:
    metric = metrics.ClassRecall(5)
    with torch.inference_mode():
        updated(metric, slow.batches(1))
        metric.reset()
        if inside:
            updated(metric, slow.batches()[:2])
    updated(metric, slow.batches()[2 * inside :])
    same(metric.support, torch.tensor(slow.count(*slow.joined(slow.batches()), 5).support))


@EVERY
def test_an_update_reads_nothing_back_from_the_device(case: Case) -> None:
    # Tensors without data cannot be read.
    options: dict[str, Any] = {"num_attributes": 2, "ignore_index": 0}
    for top_k in (1, 2):
        metric = case.make(5, top_k=top_k, **options).to("meta")
        assert metric.device.type == metric.tp.device.type == "meta"
        target = torch.ones(8, device="meta").long()
        metric.update(torch.rand(8, 5, device="meta"), target, target)
        if top_k == 1:
            metric.update(target, target, target)
        assert metric.support.shape == (10,)


@EVERY
def test_moving_to_where_it_is_changes_nothing(case: Case) -> None:
    first, *rest = slow.batches()
    metric = updated(case.make(5).set_dtype(torch.float64), [first]).to("cpu").cpu()
    same(updated(metric, rest).compute(), expected(case, slow.batches()))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@EVERY
def test_on_a_gpu_an_update_does_not_wait(case: Case) -> None:
    metric = case.make(5).set_dtype(torch.float64).to("cuda")
    parts = [(z.cuda(), y.cuda()) for z, y in slow.batches()]
    updated(metric, parts[:1])
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        updated(metric, parts[1:])
        metric.update(parts[0][0].argmax(1), parts[0][1])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    value = metric.compute()
    assert value.device.type == "cuda"
    same(value.cpu(), expected(case, [*slow.batches(), slow.batches()[0]]))
    same(metric.cpu().compute(), value.cpu())


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = str(tmp_path_factory.mktemp("ranks"))
    mp.spawn(slow.run_rank, (2, folder), nprocs=2)
    return [torch.load(f"{folder}/{rank}.pt", weights_only=True) for rank in range(2)]


@EVERY
def test_two_ranks_are_one(case: Case, found: list[Any]) -> None:
    name = next(name for name, other in CASES.items() if other is case)
    for rank, results in enumerate(found):
        own = slow.batches()[rank::2]
        value, steps, support, again = results[name]
        same(value, expected(case, slow.batches()))
        same(again, value)
        for step, batch in zip(steps, own, strict=True):  # of this rank alone
            same(step, expected(case, [batch]))
        assert support.tolist() == slow.count(*slow.joined(own), 5).support


def test_a_collection_on_two_ranks(found: list[Any]) -> None:
    for results in found:
        for name, case in CASES.items():
            same(results["collection"][name.replace(" ", "_")], expected(case, slow.batches()))


def test_churn_on_two_ranks(found: list[Any]) -> None:
    for results, own in zip(found, slow.churned(), strict=True):
        value, changed, total = results["churn"]
        both = sum(int((pred != reference).sum()) for pred, reference in slow.churned())
        assert float(value) == pytest.approx(both / 30)
        # The states are those of the rank again, not added up for good.
        assert (int(changed), int(total)) == (int((own[0] != own[1]).sum()), len(own[0]))


def test_a_bad_label_on_one_rank_stops_both(found: list[Any]) -> None:
    for results in found:
        assert results["error"].startswith("1 samples have a label outside [0, 5)")


def test_a_collection_counts_once() -> None:
    collection = slow.metrics_collection()
    updated(collection, slow.batches())
    assert len(collection.compute_groups) == 1
    for name, value in collection.compute().items():
        same(value, expected(CASES[name.replace("_", " ")], slow.batches()))
    collection.reset()
    updated(collection, slow.batches(1))
    for name, value in collection.compute().items():
        same(value, expected(CASES[name.replace("_", " ")], slow.batches(1)))


def test_a_collection_called_in_each_step() -> None:
    collection = slow.metrics_collection()
    for batch in slow.batches():
        for name, value in collection(*batch).items():
            same(value, expected(CASES[name.replace("_", " ")], [batch]))
    for name, value in collection.compute().items():
        same(value, expected(CASES[name.replace("_", " ")], slow.batches()))


def test_clones_of_a_collection_count_apart() -> None:
    collection = slow.metrics_collection()
    train, val = collection.clone(prefix="train_"), collection.clone(prefix="val_")
    updated(train, slow.batches())
    updated(val, slow.batches(1))
    for clone, seed, prefix in ((train, 0, "train_"), (val, 1, "val_")):
        values = clone.compute()
        assert all(name.startswith(prefix) for name in values)
        same(values[f"{prefix}RecallGap"], expected(CASES["RecallGap"], slow.batches(seed)))


def test_a_collection_of_groups() -> None:
    collection = slow.metrics_collection(num_attributes=2)
    logits, target = slow.joined(slow.batches())
    attribute = torch.randint(0, 2, (100,))
    for part in range(0, 100, 30):
        of = slice(part, part + 30)
        collection.update(logits[of], target[of], attribute=attribute[of])
    assert len(collection.compute_groups) == 1
    counts = slow.count(logits, target, 5, attribute=attribute, num_attributes=2)
    for name, value in collection.compute().items():
        same(value, CASES[name.replace("_", " ")].expected(counts))


@pytest.mark.parametrize("options", [{"top_k": 2}, {"ignore_index": 3}])
def test_metrics_that_count_otherwise_are_not_merged(options: Any) -> None:
    # In the first batch they agree: all right, nothing ignored.
    easy = torch.eye(5)[:3], torch.arange(3)
    made = {"a": metrics.ClassRecall(5), "b": metrics.ClassRecall(5, **options)}
    collection = updated(MetricCollection(made), [easy, *slow.batches()])
    assert len(collection.compute_groups) == 2
    alone = updated(metrics.ClassRecall(5, **options), [easy, *slow.batches()])
    one, other = collection.compute()["b"], alone.compute()
    torch.testing.assert_close(one, other, equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("num_classes", [1, 3])
def test_classwise(num_classes: int) -> None:
    labels = ["cat", "dog", "emu"][:num_classes]
    wrapper = ClasswiseWrapper(metrics.ClassRecall(num_classes), labels=labels)
    wrapper.update(torch.zeros(2).long(), torch.zeros(2).long())
    values = wrapper.compute()
    assert list(values) == [f"classrecall_{label}" for label in labels]
    assert values["classrecall_cat"] == 1


class Evaluated(pl.LightningModule):
    """Learns nothing, and logs what it says about `slow.batches()`."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        scalars = {n: c for n, c in CASES.items() if not c.make(5).per_class}
        self.scalars = torch.nn.ModuleDict({n: c.make(5) for n, c in scalars.items()})
        self.vector = ClasswiseWrapper(metrics.ClassRecall(5), labels=list("abcde"))
        self.train_recall = metrics.WorstClassRecall(5)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.train_recall(*batch)
        self.log("train", self.train_recall, on_step=False, on_epoch=True)
        loss: Tensor = self.weight * batch[0].sum()
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        for metric in self.scalars.values():
            metric.update(*batch)
        self.vector.update(*batch)
        self.log_dict(dict(self.scalars.items()), on_epoch=True)

    def on_validation_epoch_end(self) -> None:
        values = self.vector.compute()
        self.log_dict({name: value for name, value in values.items() if not value.isnan()})
        self.vector.reset()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.0)


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    folder = Path(tmp_path_factory.mktemp("fit"))
    trainer = users.trainer(max_epochs=2, num_sanity_val_steps=2, default_root_dir=folder)
    loader = DataLoader(slow.batches(), batch_size=None)
    trainer.fit(Evaluated(), loader, loader)
    return trainer.callback_metrics


@EVERY
def test_scalars_are_logged_as_objects(case: Case, logged: dict[str, Tensor]) -> None:
    if not case.make(5).per_class:
        name = next(name for name, other in CASES.items() if other is case)
        value = logged[name].double()
        torch.testing.assert_close(value, expected(case, slow.batches()), rtol=1e-6, atol=1e-6)


def test_vectors_are_logged_by_class(logged: dict[str, Tensor]) -> None:
    recall = expected(CASES["ClassRecall"], slow.batches())
    values = [logged[f"classrecall_{label}"].item() for label in "abcd"]
    assert values == pytest.approx(recall[:4].tolist())
    assert "classrecall_e" not in logged
    assert logged["train"].item() == pytest.approx(recall[:4].min().item())
