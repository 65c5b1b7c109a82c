"""What recalls and metrics must be, worked out by slow loops.

A recall is a list of fractions, so that recalls equal to their mean are seen as that; NaN where a class has
no support.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_fairprune import metrics
from lightning_fairprune.counts import ClassCounts

NAN = math.nan

Recall = list[Any]
Accuracies = tuple[Any, Any] | None  # of the model and of the reference


def inexact(value: Any) -> Any:
    return [float(v) for v in value] if isinstance(value, list) else float(value)


def seen(recall: Recall) -> Recall:
    return [r for r in recall if not math.isnan(r)]


def gap(recall: Recall) -> float:
    return max(seen(recall)) - min(seen(recall)) if seen(recall) else NAN


def change(recall: Recall, reference: Recall) -> Recall:
    return [r - b for r, b in zip(recall, reference, strict=True)]


def retention(recall: Recall, reference: Recall) -> Recall:
    return [over(r, b) for r, b in zip(recall, reference, strict=True)]


def disparity(recall: Recall, reference: Recall, accuracies: Accuracies = None) -> float:
    return max([-x for x in seen(adjusted(recall, reference, accuracies))], default=NAN)


def worst_k(recall: Recall, k: int) -> float:
    lowest = sorted(seen(recall))[:k]
    return sum(lowest) / len(lowest) if lowest else NAN


def cvar(recall: Recall, level: float) -> float:
    """Walks up from the lowest class until the fraction is used up."""
    values = sorted(seen(recall))
    left = size = level * len(values)
    total = 0.0
    for value in values:
        total += min(1.0, left) * value
        left -= min(1.0, left)
    return total / size if values else NAN


def std(recall: Recall, correction: int) -> float:
    values = seen(recall)
    if len(values) <= correction:
        return NAN
    return statistics.stdev(values) if correction else statistics.pstdev(values)


def common(recall: Recall, reference: Recall) -> tuple[Recall, Recall]:
    both = [not (math.isnan(a) or math.isnan(b)) for a, b in zip(recall, reference, strict=True)]
    return (
        [r if ok else NAN for r, ok in zip(recall, both, strict=True)],
        [r if ok else NAN for r, ok in zip(reference, both, strict=True)],
    )


def mean(recall: Recall) -> Any:
    return sum(seen(recall)) / len(seen(recall)) if seen(recall) else NAN


def over(a: Any, b: Any) -> Any:
    return a / b if b else NAN


def adjusted(recall: Recall, reference: Recall, accuracies: Accuracies = None) -> Recall:
    recall, reference = common(recall, reference)
    accuracy, before = accuracies or (mean(recall), mean(reference))
    loss = accuracy - before
    return [r - b - loss for r, b in zip(recall, reference, strict=True)]


def balance(recall: Recall, accuracy: Any) -> Recall:
    return [r - accuracy for r in recall]


def normalised(recall: Recall, accuracy: Any = None) -> Recall:
    accuracy = mean(recall) if accuracy is None else accuracy
    return [over(r - accuracy, accuracy) for r in recall]


def balances(recall: Recall, reference: Recall, accuracies: Accuracies) -> list[tuple[Any, Any]]:
    accuracy, before = accuracies or (None, None)
    recall, reference = common(recall, reference)
    return list(zip(normalised(recall, accuracy), normalised(reference, before), strict=True))


def class_intensification(
    recall: Recall, reference: Recall, accuracies: Accuracies = None
) -> Recall:
    return [over(a, b) for a, b in balances(recall, reference, accuracies)]


def intensification(recall: Recall, reference: Recall, accuracies: Accuracies = None) -> float:
    pairs = balances(recall, reference, accuracies)
    pairs = [(a, b) for a, b in pairs if not (math.isnan(a) or math.isnan(b))]
    return over(sum(a * b for a, b in pairs), sum(b * b for _, b in pairs))


@dataclass
class Counts:
    """True positives and support, counted one by one."""

    tp: list[int]
    support: list[int]

    @property
    def recall(self) -> Recall:
        return [Fraction(t, n) if n else NAN for t, n in zip(self.tp, self.support, strict=True)]

    def accuracy(self, classes: Sequence[int] | None = None) -> Any:
        classes = range(len(self.tp)) if classes is None else classes
        support = sum(self.support[k] for k in classes)
        return Fraction(sum(self.tp[k] for k in classes), support) if support else NAN


def count(
    preds: Tensor,
    target: Tensor,
    num_classes: int,
    *,
    ignore_index: int | None = None,
    top_k: int = 1,
    attribute: Tensor | None = None,
    num_attributes: int | None = None,
) -> Counts:
    """One sample after the other; of equal logits the first is higher."""
    size = num_classes * (num_attributes or 1)
    counts = Counts([0] * size, [0] * size)
    attributes = [0] * target.numel() if attribute is None else attribute.flatten().tolist()
    if preds.is_floating_point():
        rows = preds.movedim(1, -1).reshape(-1, num_classes).tolist()
        ranked = [sorted(range(num_classes), key=lambda k: -row[k])[:top_k] for row in rows]
    else:
        ranked = [[k] for k in preds.flatten().tolist()]
    for best, label, a in zip(ranked, target.flatten().tolist(), attributes, strict=True):
        if label != ignore_index:
            group = label * (num_attributes or 1) + a
            counts.support[group] += 1
            counts.tp[group] += label in best
    return counts


def reference(size: int, seed: int = 7) -> Counts:
    """The third class has no support in the reference, the second recall 0."""
    generator = torch.Generator().manual_seed(seed)
    support = torch.randint(5, 30, (size,), generator=generator)
    tp = (support * torch.rand(size, generator=generator)).long()
    if size > 2:
        tp[1], support[2], tp[2] = 0, 0, 0
    return Counts(tp.tolist(), support.tolist())


def given(counts: Counts) -> ClassCounts:
    return ClassCounts(torch.tensor(counts.tp), torch.tensor(counts.support))


@dataclass
class Case:
    """A metric with its arguments, and the loop that it must agree with."""

    metric: str
    slow: Callable[..., Any]
    kwargs: dict[str, Any] = field(default_factory=dict)
    compare: str = ""  # how the reference is given: "counts", "recall" or "accuracy"
    accuracies: bool = False  # whether the loop wants them

    def arguments(self, size: int) -> dict[str, Any]:
        if not self.compare:
            return self.kwargs
        before = given(reference(size))
        if self.compare == "counts":
            return {"reference": before}
        more = {"reference_accuracy": 0.55} if self.compare == "accuracy" else {}
        return {"reference": before.recall, **more}

    def make(self, num_classes: int, **options: Any) -> Any:
        size = num_classes * (options.get("num_attributes") or 1)
        return getattr(metrics, self.metric)(num_classes, **self.arguments(size), **options)

    def expected(self, now: Counts) -> Tensor:
        if not self.compare:
            value = self.slow(now)
        else:
            before = type(now)(**vars(reference(len(now.tp))))
            recall = before.recall
            common = [k for k, n in enumerate(now.support) if n and before.support[k]]
            accuracy = {
                "counts": before.accuracy(common),
                "recall": mean([recall[k] for k in common]),
                "accuracy": 0.55,
            }[self.compare]
            both = ((now.accuracy(common), accuracy),) if self.accuracies else ()
            value = self.slow(now.recall, recall, *both)
        return torch.tensor(inexact(value), dtype=torch.float64)


def _compared(metric: str, slow: Callable[..., Any], *ways: str) -> dict[str, Case]:
    return {
        f"{metric} {way}": Case(metric, slow, compare=way, accuracies="accuracy" in ways)
        for way in ways
    }


CASES: dict[str, Case] = {
    "ClassRecall": Case("ClassRecall", lambda now: now.recall),
    "WorstClassRecall": Case("WorstClassRecall", lambda now: worst_k(now.recall, 1)),
    "WorstKRecall": Case("WorstKRecall", lambda now: worst_k(now.recall, 2), {"k": 2}),
    "RecallCVaR": Case("RecallCVaR", lambda now: cvar(now.recall, 0.4), {"level": 0.4}),
    "RecallGap": Case("RecallGap", lambda now: gap(now.recall)),
    "RecallStd": Case("RecallStd", lambda now: std(now.recall, 0)),
    "RecallStd sample": Case("RecallStd", lambda now: std(now.recall, 1), {"correction": 1}),
    "ZeroRecallClasses": Case("ZeroRecallClasses", lambda now: now.recall.count(0)),
    "RecallBalance": Case("RecallBalance", lambda now: balance(now.recall, now.accuracy())),
    "RecallBalance normalised": Case(
        "RecallBalance", lambda now: normalised(now.recall, now.accuracy()), {"normalised": True}
    ),
    **_compared("RecallDistortion", change, "counts", "recall"),
    **_compared("RecallRetention", retention, "counts", "recall"),
    **_compared("AdjustedRecallChange", adjusted, "counts", "recall", "accuracy"),
    **_compared("MaxDisparity", disparity, "counts", "recall", "accuracy"),
    **_compared("ClassIntensification", class_intensification, "counts", "recall", "accuracy"),
    **_compared("IntensificationRatio", intensification, "counts", "recall", "accuracy"),
}


def batches(seed: int = 0, num_classes: int = 5, sizes: Sequence[int] = (40, 23, 1, 36)) -> Any:
    """Logits better than chance; the last class never comes."""
    generator = torch.Generator().manual_seed(seed)
    out = []
    for n in sizes:
        target = torch.randint(0, max(num_classes - 1, 1), (n,), generator=generator)
        logits = torch.randn(n, num_classes, generator=generator)
        logits[torch.arange(n), target] += 1.0
        out.append((logits, target))
    return out


def joined(parts: Any) -> tuple[Tensor, Tensor]:
    return torch.cat([z for z, _ in parts]), torch.cat([y for _, y in parts])


def run_rank(rank: int, world: int, folder: str) -> None:
    """Every metric on every second batch; what each rank finds is left in `folder`."""
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=world)
    found: dict[str, Any] = {}
    for name, case in CASES.items():
        metric = case.make(5).set_dtype(torch.float64)
        steps = [metric(*batch) for batch in batches()[rank::world]]
        value = metric.compute()
        found[name] = (value, steps, metric.support, metric.compute())
    collection = metrics_collection()
    collection.update(*batches()[rank])
    collection.update(*batches()[rank + world])
    found["collection"] = collection.compute()
    churn = metrics.Churn()
    churn.update(*churned()[rank])
    found["churn"] = (churn.compute(), churn.changed, churn.total)
    bad = metrics.WorstClassRecall(5)
    if rank:
        bad.update(torch.tensor([1]), torch.tensor([5]))
    else:
        bad.update(torch.tensor([1]), torch.tensor([1]))
    try:
        bad.compute()
    except ValueError as error:  # on both ranks, or the other would wait for ever
        found["error"] = str(error)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def churned() -> list[tuple[Tensor, Tensor]]:
    """Class ids of two models for each of two ranks: 20 samples and 10."""
    generator = torch.Generator().manual_seed(0)
    pred, reference = torch.randint(0, 3, (2, 30), generator=generator)
    return [(pred[:20], reference[:20]), (pred[20:], reference[20:])]


def metrics_collection(num_classes: int = 5, **options: Any) -> Any:
    from torchmetrics import MetricCollection

    made = {
        name.replace(" ", "_"): case.make(num_classes, **options).set_dtype(torch.float64)
        for name, case in CASES.items()
    }
    return MetricCollection(made)
