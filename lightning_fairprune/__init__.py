"""Train on less data, or with fewer weights, without the worst class paying for it."""

from lightning_fairprune import (
    criteria,
    geometry,
    gradients,
    groups,
    label_errors,
    masks,
    metrics,
    offsets,
    quotas,
    recalls,
    representation,
    scores,
    signals,
    statistics,
    weighting,
)
from lightning_fairprune._loading.wrapper import FairPruneDataModule
from lightning_fairprune.callbacks import (
    ClassWeighting,
    DataPruning,
    RecallMonitor,
    RecallOffsets,
    ScorePass,
    WeightPruning,
    planned_stepping_batches,
)
from lightning_fairprune.counts import ClassCounts
from lightning_fairprune.records.dynamics import Dynamics
from lightning_fairprune.records.offsets_record import OffsetsRecord
from lightning_fairprune.records.pruning_record import PruningRecord
from lightning_fairprune.records.recall_history import RecallHistory
from lightning_fairprune.records.sparsity_record import SparsityRecord
from lightning_fairprune.scoring import score_pass
from lightning_fairprune.selection import Selection, select

__version__ = "0.1.0.dev0"

__all__ = [
    "ClassCounts",
    "ClassWeighting",
    "DataPruning",
    "Dynamics",
    "FairPruneDataModule",
    "OffsetsRecord",
    "PruningRecord",
    "RecallHistory",
    "RecallMonitor",
    "RecallOffsets",
    "ScorePass",
    "Selection",
    "SparsityRecord",
    "WeightPruning",
    "criteria",
    "geometry",
    "gradients",
    "groups",
    "label_errors",
    "masks",
    "metrics",
    "offsets",
    "planned_stepping_batches",
    "quotas",
    "recalls",
    "representation",
    "score_pass",
    "scores",
    "select",
    "signals",
    "statistics",
    "weighting",
]
