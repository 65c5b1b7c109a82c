"""Metrics of class recalls for torchmetrics: everything follows from two counts per class.

All but `MaximinRecall`, which keeps logits, have the same state, so that a :class:`torchmetrics.MetricCollection` updates it once for all of them. A class
without support has recall NaN and is left out of worst, gap, deviation and mean; without any class with support these are
NaN. Results are float32 on the device of the metric; `set_dtype(torch.float64)` gives them in full. `exemplars` compares
the predictions of single samples.
"""

from __future__ import annotations

from lightning_fairprune.metrics import functional
from lightning_fairprune.metrics._alone import (
    ClassRecall,
    RecallBalance,
    RecallCVaR,
    RecallGap,
    RecallStd,
    WorstClassRecall,
    WorstKRecall,
    ZeroRecallClasses,
)
from lightning_fairprune.metrics._compared import (
    AdjustedRecallChange,
    ClassIntensification,
    IntensificationRatio,
    MaxDisparity,
    RecallDistortion,
    RecallRetention,
)
from lightning_fairprune.metrics._maximin import MaximinRecall
from lightning_fairprune.metrics.exemplars import (
    Churn,
    churn,
    class_histogram,
    compression_identified_exemplars,
    pruning_identified_exemplars,
)

__all__ = [
    "AdjustedRecallChange",
    "Churn",
    "ClassIntensification",
    "ClassRecall",
    "IntensificationRatio",
    "MaxDisparity",
    "MaximinRecall",
    "RecallBalance",
    "RecallCVaR",
    "RecallDistortion",
    "RecallGap",
    "RecallRetention",
    "RecallStd",
    "WorstClassRecall",
    "WorstKRecall",
    "ZeroRecallClasses",
    "churn",
    "class_histogram",
    "compression_identified_exemplars",
    "functional",
    "pruning_identified_exemplars",
]
