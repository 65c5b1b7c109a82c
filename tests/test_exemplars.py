"""What pruning changes sample by sample, against slow loops."""

from __future__ import annotations

import math
import pickle
from collections import Counter
from collections.abc import Callable

import matplotlib
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchmetrics import MetricCollection

from lightning_fairprune.metrics import exemplars
from lightning_fairprune.metrics.exemplars import (
    Churn,
    churn,
    class_histogram,
    compression_identified_exemplars,
    pruning_identified_exemplars,
    taxicab_distance,
)

WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
Function = Callable[[Tensor, Tensor], Tensor]
BOTH = (pruning_identified_exemplars, taxicab_distance)


def ids(seed: int, *shape: int, num_classes: int = 4) -> Tensor:
    return torch.randint(0, num_classes, shape, generator=torch.Generator().manual_seed(seed))


def slow_mode(labels: list[int]) -> int:
    count = Counter(labels)
    return min(label for label in count if count[label] == max(count.values()))


def slow_exemplars(pred: list[list[int]], reference: list[list[int]]) -> list[int]:
    pairs = zip(zip(*pred, strict=True), zip(*reference, strict=True), strict=True)
    return [i for i, (p, r) in enumerate(pairs) if slow_mode(list(p)) != slow_mode(list(r))]


def slow_distance(pred: list[list[int]], reference: list[list[int]]) -> list[float]:
    out = []
    for p, r in zip(zip(*pred, strict=True), zip(*reference, strict=True), strict=True):
        one, two = Counter(p), Counter(r)
        out.append(sum(abs(one[k] / len(p) - two[k] / len(r)) for k in one | two))
    return out


@st.composite
def populations(draw: st.DrawFn) -> tuple[list[list[int]], list[list[int]]]:
    n = draw(st.integers(1, 6))
    row = st.lists(st.integers(0, 3), min_size=n, max_size=n)
    rows = st.lists(row, min_size=1, max_size=6)
    return draw(rows), draw(rows)


class TestChurn:
    def test_by_hand(self) -> None:
        assert churn(torch.tensor([0, 1, 2, 2]), torch.tensor([0, 1, 1, 2])) == 0.25
        metric = Churn()
        metric.update(torch.tensor([0, 1]), torch.tensor([0, 1]))
        assert metric.compute() == 0
        metric.update(torch.tensor([2]), torch.tensor([1]))
        assert metric.compute().item() == pytest.approx(1 / 3)

    def test_logits_and_ids_are_one(self) -> None:
        logits, other = torch.randn(50, 4), torch.randn(50, 4)
        pred, reference = logits.argmax(1), other.argmax(1)
        slow = sum(a != b for a, b in zip(pred.tolist(), reference.tolist(), strict=True)) / 50
        for first in (logits, logits.half(), pred, pred.to(torch.uint8)):
            for second in (other, reference, reference.int()):
                assert churn(first, second).item() == pytest.approx(slow, abs=0.021)
                metric = Churn()
                metric(first, second)
                assert metric.compute() == churn(first, second)
        assert churn(logits, other).item() == pytest.approx(slow)

    def test_batches_and_order_do_not_matter(self) -> None:
        pred, reference = ids(0, 100), ids(1, 100)
        for size in (1, 7, 100):
            metric = Churn()
            for batch in reversed(list(zip(pred.split(size), reference.split(size), strict=True))):
                metric.update(*batch)
            assert metric.compute() == churn(pred, reference)
            assert (metric.total, metric.total.dtype) == (100, torch.int64)
            assert metric.changed.dtype == torch.int64

    def test_nothing_seen(self) -> None:
        nothing = torch.tensor([], dtype=torch.int64)
        assert churn(nothing, nothing).isnan()
        metric = Churn()
        metric.update(nothing, nothing)
        assert metric.compute().isnan()
        metric.update(torch.tensor([0]), torch.tensor([1]))
        assert metric.compute() == 1
        metric.reset()
        with pytest.warns(UserWarning, match="before the ``update`` method"):
            assert metric.compute().isnan()

    def test_update_copies_nothing_to_the_host(self) -> None:
        """Tensors on the meta device have no values to copy."""
        metric = Churn().to("meta")
        logits = torch.empty(8, 3, device="meta")
        metric.update(logits, logits.argmax(-1))
        assert metric.changed.device.type == "meta"

    def test_pickle_and_state_dict(self) -> None:
        metric = Churn()
        metric.update(ids(0, 9), ids(1, 9))
        again = pickle.loads(pickle.dumps(metric))
        assert again.compute() == metric.compute()
        again.update(ids(2, 9), ids(3, 9))
        assert again.total == 18
        assert metric.total == 9
        assert metric.state_dict() == {}
        metric.persistent(True)
        loaded = Churn()
        loaded.persistent(True)
        loaded.load_state_dict(metric.state_dict())
        assert (loaded.changed, loaded.total) == (metric.changed, metric.total)

    def test_collection(self) -> None:
        collection = MetricCollection({"a": Churn(), "b": Churn()})
        pred, reference = ids(0, 30), ids(1, 30)
        for batch in zip(pred.split(10), reference.split(10), strict=True):
            collection.update(*batch)
        assert len(collection.compute_groups) == 1
        assert collection.compute() == {"a": churn(pred, reference), "b": churn(pred, reference)}
        assert collection(preds=pred, reference=reference)["a"] == churn(pred, reference)

    def test_plot(self) -> None:
        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        metric = Churn()
        metric.update(ids(0, 9), ids(1, 9))
        figure, axes = metric.plot()
        assert axes.get_ylim()[0] <= 0
        assert axes.get_ylim()[1] >= 1
        _, own = plt.subplots()
        _, used = metric.plot([torch.tensor(0.1), torch.tensor(0.2)], ax=own)
        assert used is own
        plt.close("all")
        assert figure is not None

    @pytest.mark.parametrize(
        ("preds", "reference", "message"),
        [
            (torch.rand(3), ids(0, 3), r"`preds` must be logits .*got \[3\] of torch.float32"),
            (ids(0, 3, 2), ids(0, 3), r"`preds` must be logits .*got \[3, 2\] of torch.int64"),
            (ids(0, 3), torch.ones(3).bool(), r"`reference` must be logits .*of torch.bool"),
            (ids(0, 3), torch.rand(3, 2, 2), r"`reference` must be logits .*got \[3, 2, 2\]"),
            (torch.tensor(1), ids(0, 3), r"`preds` must be logits .*got \[\]"),
            (ids(0, 3), ids(0, 4), r"for the samples and classes of `preds`, \[3\], got \[4\]"),
            (torch.rand(3, 2), torch.rand(3, 4), r"of `preds`, \[3, 2\], got \[3, 4\]"),
        ],
    )
    def test_errors(self, preds: Tensor, reference: Tensor, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            churn(preds, reference)
        with pytest.raises(ValueError, match=message):
            Churn().update(preds, reference)


class TestPruningIdentified:
    def test_by_hand(self) -> None:
        reference = torch.tensor([[0, 1, 1, 2], [0, 1, 1, 2], [0, 0, 1, 2]])
        pruned = torch.tensor([[0, 2, 1, 3], [1, 2, 1, 0], [0, 1, 0, 1]])
        # 0: 0 and 0. 1: 1 and 2. 2: 1 and 1. 3: 2, and a tie of 0, 1 and 3, of which 0 counts.
        assert pruning_identified_exemplars(pruned, reference).tolist() == [1, 3]

    def test_ties_take_the_smallest(self) -> None:
        tied = torch.tensor([[3], [1], [3], [1], [2]])
        assert len(pruning_identified_exemplars(tied, torch.tensor([1]))) == 0
        assert len(pruning_identified_exemplars(tied, torch.tensor([3]))) == 1

    def test_one_model_against_one_is_churn(self) -> None:
        pred, reference = ids(0, 100), ids(1, 100)
        found = pruning_identified_exemplars(pred, reference)
        assert torch.equal(found, (pred != reference).nonzero().flatten())
        assert found.dtype == torch.int64
        assert torch.equal(found, pruning_identified_exemplars(pred[None], reference[None]))
        assert len(found) == pytest.approx(100 * churn(pred, reference).item())

    @settings(max_examples=150, deadline=None)
    @given(populations())
    def test_slow_loop(self, both: tuple[list[list[int]], list[list[int]]]) -> None:
        found = pruning_identified_exemplars(torch.tensor(both[0]), torch.tensor(both[1]))
        assert found.tolist() == slow_exemplars(*both)


class TestTaxicab:
    def test_by_hand(self) -> None:
        reference = torch.tensor([[0, 1, 1, 2], [0, 1, 0, 2]])
        pruned = torch.tensor([[0, 1, 1, 3], [0, 2, 1, 0], [0, 1, 1, 1]])
        # 0: equal. 1: 1 -> 2/3, 0 -> 1/3. 2: 1/2 -> 1, 1/2 -> 0. 3: no label in common.
        want = [0, 2 / 3, 1, 2]
        assert taxicab_distance(pruned, reference).tolist() == pytest.approx(want)
        assert compression_identified_exemplars(pruned, reference, count=2).tolist() == [3, 2]
        assert compression_identified_exemplars(pruned, reference, count=4).tolist() == [3, 2, 1]
        assert compression_identified_exemplars(pruned, reference, threshold=1).tolist() == [3, 2]
        assert compression_identified_exemplars(pruned, reference, threshold=2).tolist() == [3]

    @settings(max_examples=150, deadline=None)
    @given(populations())
    def test_slow_loop(self, both: tuple[list[list[int]], list[list[int]]]) -> None:
        pred, reference = torch.tensor(both[0]), torch.tensor(both[1])
        distance = taxicab_distance(pred, reference)
        slow = slow_distance(*both)
        assert distance.dtype == torch.float64
        assert distance.tolist() == pytest.approx(slow)
        assert torch.equal(distance, taxicab_distance(reference, pred))
        ranked = compression_identified_exemplars(pred, reference, count=len(slow)).tolist()
        moved = [i for i, d in enumerate(slow) if d > 1e-9]
        assert ranked == sorted(moved, key=lambda i: (-round(slow[i], 9), i))

    def test_threshold_is_met_exactly(self) -> None:
        """Three of thirty models that move make .2, though .1 + .1 of rounded shares might not."""
        pred = torch.zeros(30, 1, dtype=torch.int64)
        reference = pred.clone()
        pred[:3] = 1
        assert len(compression_identified_exemplars(pred, reference, threshold=0.2)) == 1

    def test_errors(self) -> None:
        pred, reference = ids(0, 3, 5), ids(1, 2, 5)
        both = {}, {"count": 2, "threshold": 0.5}
        for match, wrong in {
            "either `count` or `threshold` must be given, got": both,
            "`count` must be between 1 and the 5 samples, got": ({"count": 0}, {"count": 6}),
            r"`threshold` must be in \(0, 2\], got": [
                {"threshold": t} for t in (0.0, 2.5, math.nan)
            ],
        }.items():
            for limits in wrong:
                with pytest.raises(ValueError, match=match):
                    compression_identified_exemplars(pred, reference, **limits)


@pytest.mark.parametrize("function", BOTH)
class TestPopulations:
    def test_chunks_do_not_show(self, function: Function, monkeypatch: pytest.MonkeyPatch) -> None:
        pred, reference = ids(0, 5, 50), ids(1, 4, 50)
        whole = function(pred, reference)
        monkeypatch.setattr(exemplars, "_CHUNK", 7)
        assert torch.equal(function(pred, reference), whole)

    def test_models_in_any_order(self, function: Function) -> None:
        pred, reference = ids(0, 5, 50), ids(1, 4, 50)
        assert torch.equal(function(pred.flip(0), reference.flip(0)), function(pred, reference))

    @pytest.mark.parametrize("dtype", WHOLE)
    def test_whole_numbers_of_any_width(self, function: Function, dtype: torch.dtype) -> None:
        """Up to the largest class that fits: nothing overflows."""
        pred, reference = ids(0, 5, 50, num_classes=128), ids(1, 4, 50, num_classes=128)
        pred[0], reference[1:] = 127, 127
        want = function(pred, reference)
        assert torch.equal(function(pred.to(dtype), reference.to(dtype)), want)

    def test_any_number_of_classes(self, function: Function) -> None:
        """A histogram of a thousand million classes, for one sample even, would not fit."""
        pred, reference = ids(0, 5, 50), ids(1, 4, 50)
        far = 250_000_000
        assert torch.equal(function(pred * far, reference * far), function(pred, reference))

    def test_no_samples(self, function: Function) -> None:
        assert function(ids(0, 3, 0), ids(0, 2, 0)).shape == (0,)

    def test_arguments_stay_as_they_are(self, function: Function) -> None:
        pred, reference = ids(0, 5, 50), ids(1, 4, 50)
        copies = pred.clone(), reference.clone()
        function(pred, reference)
        assert torch.equal(pred, copies[0])
        assert torch.equal(reference, copies[1])

    def test_errors(self, function: Function) -> None:
        good = ids(0, 3, 5)
        match = "`pred` must hold whole numbers, got torch.float32: for"
        with pytest.raises(TypeError, match=match):
            function(torch.rand(3, 5), good)
        with pytest.raises(TypeError, match=r"`reference` must hold whole numbers, got torch.bool"):
            function(good, good.bool())
        with pytest.raises(ValueError, match=r"`pred` must be \[M, N\].*got \[0, 5\]"):
            function(ids(0, 0, 5), good)
        with pytest.raises(ValueError, match=r"`reference` must be \[M, N\].*got \[\]"):
            function(good, torch.tensor(1))
        with pytest.raises(ValueError, match=r"`reference` must be \[M, N\].*got \[1, 3, 5\]"):
            function(good, good[None])
        with pytest.raises(ValueError, match=r"for the 5 samples of `pred`, got 4"):
            function(good, good[:, :4])
        with pytest.raises(ValueError, match=r"`pred` must hold class ids from 0, got -1"):
            function(good - 1, good)


class TestHistogram:
    def test_by_hand(self) -> None:
        target = torch.tensor([0, 0, 0, 0, 1, 1, 3])
        found = class_histogram(torch.tensor([6, 1, 4]), target, 4)
        assert found.count.tolist() == [1, 1, 0, 1]
        assert found.support.tolist() == [4, 2, 0, 1]
        assert found.share.tolist() == pytest.approx([0.25, 0.5, math.nan, 1], nan_ok=True)
        want = [0.25 * 7 / 3, 0.5 * 7 / 3, math.nan, 7 / 3]
        assert found.over_representation.tolist() == pytest.approx(want, nan_ok=True)

    @settings(max_examples=50, deadline=None)
    @given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1))
    def test_slow_loop(self, samples: list[tuple[int, bool]]) -> None:
        target = torch.tensor([k for k, _ in samples])
        chosen = torch.tensor([i for i, (_, there) in enumerate(samples) if there]).long()
        found = class_histogram(chosen, target, 5)
        count, support = Counter(k for k, there in samples if there), Counter(k for k, _ in samples)
        assert found.count.tolist() == [count[k] for k in range(5)]
        assert found.support.tolist() == [support[k] for k in range(5)]
        # A sample of the set is, on average over all samples, as likely as it is.
        if len(chosen):
            weight = found.support / found.support.sum()
            assert (weight * found.over_representation).nansum().item() == pytest.approx(1)

    def test_takes_what_the_others_return(self) -> None:
        pred, reference, target = ids(0, 5, 50), ids(1, 5, 50), ids(2, 50)
        chosen = pruning_identified_exemplars(pred, reference)
        found = class_histogram(chosen, target.to(torch.uint8), 4)
        assert found.count.sum() == len(chosen)
        nobody = class_histogram(chosen[:0], target, 4)
        assert nobody.count.tolist() == [0] * 4
        assert nobody.over_representation.isnan().all()

    def test_errors(self) -> None:
        target = torch.tensor([0, 1, 1])
        with pytest.raises(TypeError, match=r"`ids` must hold whole numbers, got torch.bool"):
            class_histogram(torch.ones(3).bool(), target, 2)
        with pytest.raises(ValueError, match=r"`target` must have one dimension, got \[1, 3\]"):
            class_histogram(torch.tensor([0]), target[None], 2)
        with pytest.raises(ValueError, match=r"`ids` must be in \[0, 3\), got 3"):
            class_histogram(torch.tensor([0, 3]), target, 2)
        with pytest.raises(ValueError, match=r"`target` must be in \[0, 1\), got 1"):
            class_histogram(torch.tensor([0]), target, 1)
        with pytest.raises(ValueError, match="`ids` must name each sample at most once"):
            class_histogram(torch.tensor([2, 0, 2]), target, 2)
