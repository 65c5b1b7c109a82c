"""Class counts: right predictions and support of each class, from which every recall follows."""

from lightning_fairprune.counts._answers import Answers
from lightning_fairprune.counts._class_counts import ClassCounts
from lightning_fairprune.counts._counting import Counting, count
from lightning_fairprune.counts._tally import Tally, counts_of

__all__ = ["Answers", "ClassCounts", "Counting", "Tally", "count", "counts_of"]
