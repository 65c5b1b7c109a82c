"""Which samples to keep: (target, quota, score) -> Selection.

One integer key per sample, lower = kept first, and the lowest `quota[k]` keys of every class. The
order of the samples does not depend on the quota, so a smaller quota selects a subset.
"""

from __future__ import annotations

from lightning_fairprune.selection._record import Selection
from lightning_fairprune.selection._select import Keep as Keep
from lightning_fairprune.selection._select import select

__all__ = ["Selection", "select"]
