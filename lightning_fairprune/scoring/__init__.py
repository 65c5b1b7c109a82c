"""Scores from one look at every sample with weights that do not move."""

from __future__ import annotations

from lightning_fairprune.scoring.run import score_pass

__all__ = ["score_pass"]
