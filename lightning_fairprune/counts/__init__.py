"""Class counts: right predictions and support of each class, from which every recall follows."""

from lightning_fairprune.counts._class_counts import ClassCounts, count
from lightning_fairprune.counts._tally import Tally

__all__ = ["ClassCounts", "Tally", "count"]
