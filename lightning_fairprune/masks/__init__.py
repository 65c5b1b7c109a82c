"""Which weights stay: saliency and a target sparsity -> boolean masks, True = kept.

All rules have the signature ``(saliency, sparsity, *, floor=0, keep=None) -> {name: mask}`` and remove exactly
``round(sparsity * total)`` weights; none that was removed before returns. They differ in the density of each layer.
:mod:`lightning_fairprune.masks.schedules` says when to prune how much.
"""

from __future__ import annotations

from lightning_fairprune.masks import schedules
from lightning_fairprune.masks._rules import erk, globally, lamp, per_layer
from lightning_fairprune.masks._sparsity import Sparsity, apply, sparsity_of

__all__ = [
    "Sparsity",
    "apply",
    "erk",
    "globally",
    "lamp",
    "per_layer",
    "schedules",
    "sparsity_of",
]
