"""Scores from one pass over every sample with fixed weights."""

from __future__ import annotations

from lightning_fairprune.scoring.run import score_pass

__all__ = ["score_pass"]
