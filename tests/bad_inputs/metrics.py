"""Metrics and plain functions on recalls."""

from __future__ import annotations

from typing import Any

import torch

from bad_inputs import Bad
from lightning_fairprune import metrics, recalls
from lightning_fairprune.counts import ClassCounts
from lightning_fairprune.metrics import functional

COUNTS = ClassCounts(torch.tensor([1, 2, 3]), torch.tensor([4, 4, 4]))


def updated(preds: Any, target: Any) -> Any:
    return lambda at: metrics.WorstClassRecall(3).update(preds, target)


def computed(preds: Any, target: Any) -> Any:
    """Out of range is found where the counts are read: a step must not wait for the device."""

    def run(at: Any) -> None:
        metric = metrics.WorstClassRecall(3)
        metric.update(preds, target)
        metric.compute()

    return run


SOME = torch.tensor([0, 1, 2])
# fmt: off
ROWS = [
    Bad("metric of no class", lambda at: metrics.RecallGap(0), ValueError, "`num_classes` must be at least 1", "got 0"),
    Bad("metric of 2.5 classes", lambda at: metrics.RecallGap(2.5), TypeError, "`num_classes` must be a whole number", r"got 2\.5"),
    Bad("metric of classes as text", lambda at: metrics.RecallGap("3"), TypeError, "`num_classes` must be a whole number", "got '3'"),
    Bad("top_k of more than the classes", lambda at: metrics.ClassRecall(3, top_k=4), ValueError, "`top_k` must be between 1 and the 3 classes", "got 4"),
    Bad("worst 0 classes", lambda at: metrics.WorstKRecall(3, k=0), ValueError, r"`k` must be between 1 and the 3 classes \(or groups\)", "got 0"),
    Bad("CVaR of level 0", lambda at: metrics.RecallCVaR(3, level=0.0), ValueError, r"`level` must be in \(0, 1\]", r"got 0\.0"),
    Bad("update with other lengths", updated(torch.tensor([0, 1]), SOME), ValueError, "`preds` must be logits or probabilities, or class ids", r"got torch\.int64 \[2\] for \[3\]"),
    Bad("update with logits of other classes", updated(torch.rand(3, 5), SOME), ValueError, r"`preds` must be \[3, 3\] to match `target` \[3\] and 3", r"got \[3, 5\]"),
    Bad("update with a list", updated([0, 1, 2], SOME), TypeError, "`preds` must be a tensor", "got list"),
    Bad("update with float labels", updated(SOME, SOME.float()), TypeError, "`target` must hold class ids", r"got torch\.float32"),
    Bad("labels out of range in a metric", computed(SOME, SOME + 1), ValueError, "samples have a label", r"outside \[0, 3\)", "correct them or name the label to leave out"),
    Bad("predictions out of range in a metric", computed(SOME + 1, SOME), ValueError, "samples have `preds`", r"outside \[0, 3\)"),
    Bad("NaN logits in a metric", computed(torch.full((3, 3), torch.nan), SOME), ValueError, "samples are not finite", "the training has diverged", "lower the learning rate"),
    Bad("reference of other classes", lambda at: metrics.IntensificationRatio(4, COUNTS), ValueError, r"`reference` must be for 4 classes \(or groups\)", r"got \[3\]"),
    Bad("reference above 1", lambda at: metrics.MaxDisparity(2, torch.tensor([0.5, 70.0])), ValueError, r"`reference` must be recalls in \[0, 1\], NaN without", "got 70 for class 1"),
    Bad("functional with a reference of other classes", lambda at: functional.recall_distortion(SOME, SOME, 3, torch.rand(2)), ValueError, r"`reference` must be for 3 classes \(or groups\)", r"got \[2\]"),
    Bad("churn of other lengths", lambda at: metrics.churn(SOME, SOME[:2]), ValueError, "`reference` must be for the samples and classes of", r"got \[2\]"),
    Bad("worst k of more than the classes", lambda at: recalls.worst_k(torch.rand(3), 4), ValueError, "`k` must be between 1 and the 3 classes", "got 4"),
    Bad("recalls of another shape than the reference", lambda at: recalls.change(torch.rand(3), torch.rand(4)), ValueError, "`reference` must be for the 3 classes of `recall`", "got 4"),
    Bad("counts with more hits than samples", lambda at: ClassCounts(torch.tensor([5]), torch.tensor([4])), ValueError, "`tp` must be between 0 and `support`", "got 5 of 4 for class 0"),
    Bad("counts of floats", lambda at: ClassCounts(torch.tensor([0.5]), torch.tensor([1.0])), TypeError, "`tp` and `support` must be whole numbers of samples", r"got torch\.float32 and torch\.float32"),
]
# fmt: on
