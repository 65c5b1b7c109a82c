"""One number for each class, added to the logits after training: what the worst class can gain without training."""

from __future__ import annotations

from lightning_fairprune.offsets._cross import cross_fitted
from lightning_fairprune.offsets._module import apply, export
from lightning_fairprune.offsets._search import Frontier, fit, frontier

__all__ = ["Frontier", "apply", "cross_fitted", "export", "fit", "frontier"]
