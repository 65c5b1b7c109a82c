"""The recall history of a run, for reports on models that were trained elsewhere."""

from lightning_fairprune.records.recall_history import Evaluation, RecallHistory

__all__ = ["Evaluation", "RecallHistory"]
