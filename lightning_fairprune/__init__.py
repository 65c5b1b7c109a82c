"""Train on less data, or with fewer weights, without the worst class paying for it."""

from lightning_fairprune import quotas, scores, signals
from lightning_fairprune.callbacks import DataPruning, RecallMonitor
from lightning_fairprune.counts import ClassCounts
from lightning_fairprune.datamodule import FairPruneDataModule
from lightning_fairprune.dynamics import Dynamics
from lightning_fairprune.schedule import planned_stepping_batches
from lightning_fairprune.selection import Selection, select

__version__ = "0.1.0.dev0"

__all__ = [
    "ClassCounts",
    "DataPruning",
    "Dynamics",
    "FairPruneDataModule",
    "RecallMonitor",
    "Selection",
    "planned_stepping_batches",
    "quotas",
    "scores",
    "select",
    "signals",
]
