"""Which samples to keep: (target, quota, score) -> Selection.

Every sample has an integer key, and the `quota[k]` lowest keys of every class are kept. The order of the
samples does not depend on the quota, so a smaller quota selects a subset.
"""

from __future__ import annotations

from lightning_fairprune.selection._record import Selection
from lightning_fairprune.selection._select import Keep as Keep
from lightning_fairprune.selection._select import select

__all__ = ["Selection", "select"]
