"""Does pruning intensify the differences between classes, and is that more than chance?

The unit of inference is a model (a random seed), but for `loss_bounds`, `clopper_pearson`, `confidence_sequence` and what
goes with them: there it is a sample, and the statements are about given models. Numbers may be tensors, arrays or sequences; everything is
computed in float64 on the CPU. NaN marks an unknown value (a class without support, an undefined ratio) and is
left out. Functions that need scipy raise an ImportError if it is missing.
"""

from lightning_fairprune.statistics._bounds import (
    LossBounds,
    LossTest,
    clopper_pearson,
    loss_bounds,
    loss_bounds_from_counts,
    loss_test,
    worst_recall_interval,
)
from lightning_fairprune.statistics._classes import ClassChange, class_change_test
from lightning_fairprune.statistics._intensification import (
    Summary,
    half_widths,
    intensification_line,
    intensification_ratio,
    summarise,
)
from lightning_fairprune.statistics._multiplicity import benjamini_hochberg, bonferroni, holm
from lightning_fairprune.statistics._sequences import (
    confidence_sequence,
    level_at_epoch,
)
from lightning_fairprune.statistics._ttests import (
    TTest,
    all_pairs_tests,
    consecutive_tests,
    independent_test,
    paired_test,
)

__all__ = [
    "ClassChange",
    "LossBounds",
    "LossTest",
    "Summary",
    "TTest",
    "all_pairs_tests",
    "benjamini_hochberg",
    "bonferroni",
    "class_change_test",
    "clopper_pearson",
    "confidence_sequence",
    "consecutive_tests",
    "half_widths",
    "holm",
    "independent_test",
    "intensification_line",
    "intensification_ratio",
    "level_at_epoch",
    "loss_bounds",
    "loss_bounds_from_counts",
    "loss_test",
    "paired_test",
    "summarise",
    "worst_recall_interval",
]
