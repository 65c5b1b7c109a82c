"""What the metrics refuse, and the charts they draw."""

from __future__ import annotations

import builtins
import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any

import matplotlib as mpl
import oracles_metrics as slow
import pytest
import torch
from matplotlib import pyplot as plt
from oracles_metrics import CASES, Case

from lightning_fairprune import metrics
from lightning_fairprune.counts import ClassCounts
from lightning_fairprune.metrics import functional

mpl.use("Agg")

EVERY = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
RECALL = torch.tensor([0.5, 0.7, 0.9])
COUNTS = ClassCounts(torch.tensor([1, 2, 3]), torch.tensor([4, 4, 4]))


@EVERY
@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"top_k": 0}, "`top_k` must be between 1 and the 5 classes, got 0"),
        ({"top_k": 6}, "`top_k` must be between 1 and the 5 classes, got 6"),
        ({"num_attributes": 0}, "`num_attributes` must be at least 1, got 0"),
        ({"class_names": ["a"]}, r"`class_names` must name each of 5 classes \(or groups\), got 1"),
        ({"class_names": list("abcde"), "num_attributes": 2}, "each of 10 classes"),
        ({"nonsense": 1}, "nonsense"),
    ],
)
def test_options_out_of_range_are_refused(case: Case, options: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        case.make(5, **options)


@EVERY
def test_no_class_at_all_is_refused(case: Case) -> None:
    with pytest.raises(ValueError, match="`num_classes` must be at least 1, got 0"):
        getattr(metrics, case.metric)(0, **case.arguments(5))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: metrics.WorstKRecall(3, k=4), "got 4"),
        (lambda: metrics.WorstKRecall(3, k=7, num_attributes=2), "the 6 classes .*, got 7"),
        (lambda: metrics.RecallCVaR(3, level=1.5), "got 1.5"),
        (lambda: metrics.RecallStd(3, correction=2), "`correction` must be 0 .* or 1 .*, got 2"),
    ],
)
def test_parameters_out_of_range_are_refused(make: Callable[[], Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()


COMPARED = pytest.mark.parametrize(
    "name", sorted({case.metric for case in CASES.values() if case.compare})
)


@COMPARED
@pytest.mark.parametrize(
    ("reference", "error", "match"),
    [
        (torch.rand(4), ValueError, r"`reference` must be for 3 classes \(or groups\), got \[4\]"),
        (torch.rand(1), ValueError, r"got \[1\]"),
        (torch.rand(2, 3), ValueError, r"got \[2, 3\]"),
        (torch.tensor([0.5, 1.2, 0.1]), ValueError, r"in \[0, 1\], .*, got 1.2 for class 1"),
        (torch.tensor([0.5, 0.5, -0.1]), ValueError, "got -0.1 for class 2"),
        (torch.full((3,), torch.nan), ValueError, "at least one class with support, got none"),
        (ClassCounts(*torch.zeros(2, 3).long()), ValueError, "at least one class with support"),
        (ClassCounts(*torch.ones(2, 4).long()), ValueError, r"for 3 classes .*, got \[4\]"),
        (torch.arange(3), TypeError, "ClassCounts or floating point recalls .*, got torch.int"),
        ([0.5, 0.5, 0.5], TypeError, r"ClassCounts or floating point recalls \[K\], got list"),
    ],
)
def test_bad_references_are_refused(name: str, reference: Any, error: Any, match: str) -> None:
    with pytest.raises(error, match=match):
        getattr(metrics, name)(3, reference)


@COMPARED
def test_a_reference_for_groups_must_have_them_all(name: str) -> None:
    with pytest.raises(ValueError, match=r"for 6 classes \(or groups\), got \[3\]"):
        getattr(metrics, name)(3, RECALL, num_attributes=2)


@pytest.mark.parametrize("accuracy", [-0.1, 1.1, float("nan")])
def test_impossible_accuracies_are_refused(accuracy: float) -> None:
    with pytest.raises(ValueError, match=r"`reference_accuracy` must be in \[0, 1\], got"):
        metrics.MaxDisparity(3, RECALL, reference_accuracy=accuracy)


def test_counts_have_their_own_accuracy() -> None:
    with pytest.raises(ValueError, match="`reference_accuracy` must be left out with counts"):
        metrics.MaxDisparity(3, COUNTS, reference_accuracy=0.5)


@pytest.mark.parametrize("name", functional.__all__)
def test_misspelt_options_are_refused(name: str) -> None:
    more = {"worst_k_recall": {"k": 1}, "recall_cvar": {"level": 0.5}}.get(name, {})
    if "reference" in inspect.signature(getattr(functional, name)).parameters:
        more = {"reference": RECALL}
    with pytest.raises(TypeError, match=r"among attribute, ignore_index, .*, got topk"):
        getattr(functional, name)(IDS, IDS, 3, topk=2, **more)


IDS = torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("batch", "error", "match"),
    [
        ((IDS, torch.rand(2)), TypeError, "`target` must hold class ids, got torch.float32"),
        ((IDS[0], IDS[0]), ValueError, r"`target` must be \[B\] or \[B, ...\], got a single"),
        ((torch.rand(2, 4), IDS), ValueError, r"`preds` must be \[2, 3\] to match `target` \[2\]"),
        ((torch.rand(4, 3), IDS), ValueError, r"3 classes, got \[4, 3\]"),
        ((torch.rand(2), IDS), ValueError, r"`preds` must be \[2, 3\]"),
        ((torch.rand(2, 3, 7), torch.ones(2, 6).long()), ValueError, r"must be \[2, 3, 6\]"),
        ((torch.ones(2, 3).long(), IDS), ValueError, r"got torch.int64 \[2, 3\] for \[2\]"),
        ((IDS > 0, IDS), TypeError, r"got torch.bool: if they are the classes 0 and 1, pass `pr"),
        ((IDS, IDS, IDS), ValueError, "an `attribute` and `num_attributes=None`"),
    ],
)
def test_bad_batches_are_refused_at_once(batch: Any, error: type[Exception], match: str) -> None:
    metric = metrics.ClassRecall(3)
    with pytest.raises(error, match=match):
        metric.update(*batch)
    assert metric.support.sum() == 0
    if len(batch) == 2:
        with pytest.raises(error, match=match):
            functional.class_recall(*batch, 3)


def test_bad_attributes_are_refused_at_once() -> None:
    metric = metrics.ClassRecall(3, num_attributes=2)
    with pytest.raises(ValueError, match="no `attribute` and `num_attributes=2`"):
        metric.update(IDS, IDS)
    with pytest.raises(TypeError, match="`attribute` must hold attribute ids, got"):
        metric.update(IDS, IDS, IDS.float())
    with pytest.raises(ValueError, match=r"one value for each label, got \[1\] for \[2\]"):
        metric.update(IDS, IDS, IDS[:1])


def test_class_ids_have_no_top_k() -> None:
    with pytest.raises(ValueError, match="for `top_k=2`, got class ids"):
        metrics.ClassRecall(3, top_k=2).update(IDS, IDS)


@EVERY
@pytest.mark.parametrize(
    ("batch", "match"),
    [
        ((IDS, torch.tensor([0, 5])), r"1 samples have a label outside \[0, 5\): correct them"),
        ((IDS, torch.tensor([-1, -100])), r"2 samples have a label outside \[0, 5\)"),
        ((torch.tensor([5, -1]), IDS), r"2 samples have `preds` outside \[0, 5\)"),
        ((torch.tensor([[0.0, 0, 0, 0, torch.nan]] * 2), IDS), "`preds` of 2 samples are not fini"),
        ((torch.tensor([[0.0, 0, 0, 0, torch.inf]] * 2), IDS), "the training has diverged"),
        ((torch.full((2, 5), -torch.inf), IDS), "`preds` of 2 samples are not finite"),
    ],
)
def test_values_out_of_range_show_in_compute(case: Case, batch: Any, match: str) -> None:
    metric = case.make(5)
    metric.update(*batch)
    metric.update(IDS, IDS)
    with pytest.raises(ValueError, match=match):
        metric.compute()
    metric.reset()
    metric.update(IDS, IDS)
    metric.compute()


def test_broken_logits_show_with_top_k() -> None:
    metric = metrics.ClassRecall(3, top_k=2)
    metric.update(torch.tensor([[torch.nan, 0, 0], [0, 0, 0]]), IDS)
    with pytest.raises(ValueError, match="of 1 samples are not finite"):
        metric.compute()


@pytest.mark.parametrize(("label", "attribute"), [(0, 2), (0, -1), (3, 0), (-1, 0)])
def test_groups_out_of_range_show_in_compute(label: int, attribute: int) -> None:
    metric = metrics.ClassRecall(3, num_attributes=2)
    metric.update(IDS[:1], torch.tensor([label]), torch.tensor([attribute]))
    with pytest.raises(ValueError, match=r"outside \[0, 3\) or an attribute outside \[0, 2\):"):
        metric.compute()


@pytest.mark.parametrize("dtype", [torch.int64, "torch.DoubleTensor"])
def test_results_are_floating_point(dtype: Any) -> None:
    with pytest.raises(TypeError, match="`dst_type` must be a floating point"):
        metrics.ClassRecall(3).set_dtype(dtype)


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    plt.close("all")


@EVERY
def test_every_metric_draws_itself(case: Case) -> None:
    metric = case.make(5)
    values = [metric(*batch) for batch in slow.batches()]
    for drawn in (None, metric.compute(), values):
        figure, ax = metric.plot(drawn)
        figure.canvas.draw()
        assert case.metric in (ax.get_xlabel(), ax.get_ylabel())
    _, own = plt.subplots()
    assert metric.plot(ax=own)[1] is own


def test_few_classes_are_bars_from_the_lowest() -> None:
    metric = metrics.ClassRecall(3, class_names=["cat", "dog", "emu"])
    metric.update(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0]))
    _, ax = metric.plot()
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["cat", "dog"]
    assert [bar.get_width() for bar in ax.patches] == [0.5, 1.0]
    assert ax.get_title() == "left out, without a value: 1"


def test_groups_are_named_by_label_and_attribute() -> None:
    metric = metrics.ClassRecall(2, num_attributes=2)
    metric.update(IDS, IDS, torch.tensor([1, 0]))
    _, ax = metric.plot()
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["0, 1", "1, 0"]


def test_a_thousand_names_are_never_drawn() -> None:
    metric = metrics.ClassRecall(1000)
    metric.update(torch.arange(1000) // 2, torch.arange(1000))
    figure, ax = metric.plot()
    figure.canvas.draw()
    assert ax.texts[0].get_text() == "lowest:\n1\n2\n3\n\nhighest:\n0\n999\n998"
    assert len(ax.get_yticklabels()) < 20
    _, ax = metric.plot([metric.compute()] * 30)
    assert len(ax.get_legend().get_texts()) == 6
    assert len(ax.get_xticks()) <= 10


def test_classes_that_were_never_seen_leave_an_empty_chart() -> None:
    metric = metrics.ClassRecall(3)
    figure, _ = metric.plot(torch.full((3,), torch.nan))
    figure.canvas.draw()
    figure, _ = metric.plot([torch.full((3,), torch.nan)] * 2)
    figure.canvas.draw()


@EVERY
def test_without_matplotlib_it_says_what_to_install(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    imports = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return imports(name, *args, **kwargs)

    metric = case.make(5)
    metric.update(*slow.batches()[0])
    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.delitem(sys.modules, "matplotlib", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lightning-fairprune\[report\]'"):
        metric.plot()
