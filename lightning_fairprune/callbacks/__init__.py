"""Trainer callbacks: they decide *when*; the functions they call know *what*."""

from lightning_fairprune.callbacks._data.planned import planned_stepping_batches
from lightning_fairprune.callbacks._data.settings import ScorePass
from lightning_fairprune.callbacks.class_weighting import ClassWeighting
from lightning_fairprune.callbacks.data_pruning import DataPruning
from lightning_fairprune.callbacks.recall_monitor import RecallMonitor
from lightning_fairprune.callbacks.recall_offsets import RecallOffsets
from lightning_fairprune.callbacks.weight_pruning import WeightPruning

__all__ = [
    "ClassWeighting",
    "DataPruning",
    "RecallMonitor",
    "RecallOffsets",
    "ScorePass",
    "WeightPruning",
    "planned_stepping_batches",
]
