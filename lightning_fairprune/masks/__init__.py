"""Which weights stay: saliency and a target sparsity -> boolean masks, True = kept.

The rules share one signature, ``(saliency, sparsity, *, floor=0, keep=None) -> {name: mask}``, and one
promise: exactly ``round(sparsity * total)`` weights are removed, none that was removed before returns.
They differ in how much each layer gives. When to prune how much is in
:mod:`lightning_fairprune.masks.schedules`.
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
